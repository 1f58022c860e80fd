"""The relay: what the ledger says is to run is in Redis, whatever Redis has lost; on a real Redis and PostgreSQL."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
import redis

import db
import worker
from db.database import Database
from tests.servers import Observer
from tests.waiting import eventually
from tests.worker.engine.conftest import Seen, StartWorker
from worker import Queue, task
from worker.engine.relay import Relay
from worker.errors import ResultNotFoundError
from worker.ledger import Ending, Ledger, State, Unpublished

RUNS: list[int] = []


@task
async def count(number: int = 0) -> int:
    RUNS.append(number)
    return number


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    RUNS.clear()


@pytest.fixture
def ledger(database: Database[db.AsyncSession]) -> Ledger:
    return Ledger()


@pytest.fixture
def relay(queue: Queue, ledger: Ledger) -> Relay:
    """A relay that the test drives by hand."""
    return Relay(queue, ledger, [queue.name])


async def one_round(relay: Relay) -> None:
    await relay._watch_epochs()
    await relay._round()


async def enqueue(**using: Any) -> "worker.Job[int]":
    """A job that was enqueued in a transaction."""
    async with db.scope():
        return await count.using(**using).enqueue(1)


async def all_due(postgres: Observer) -> None:
    """Let every row be looked after by the next round."""
    await postgres.execute("UPDATE tandem_jobs SET check_at = 0 WHERE state = 'pending'")


def queued(observer: redis.Redis) -> list[str]:
    found: Any = observer.zrange("arq:queue", 0, -1)
    return list(found)


class TestLosses:
    async def test_a_flush_costs_seconds(
        self, start: StartWorker, ledger: Ledger, observer: redis.Redis, postgres: Observer
    ) -> None:
        """D9: 100 jobs enqueued in a transaction run once each, although Redis loses all of them."""
        async with db.scope():
            await count.enqueue_many([{"number": number} for number in range(100)])
        await postgres.execute("UPDATE tandem_jobs SET check_at = check_at + 600000, checks = 9")  # they are put off
        observer.flushdb()
        async with start(count, ledger=ledger):
            await eventually(lambda: len(RUNS) >= 100, timeout=5)
            await eventually(
                lambda: postgres.fetchval("SELECT count(*) FROM tandem_jobs WHERE state = 'done'"), equals=100
            )
        assert sorted(RUNS) == list(range(100))

    async def test_a_flush_while_the_worker_runs(self, relay: Relay, observer: redis.Redis, postgres: Observer) -> None:
        """A relay that has seen another epoch looks after all rows, also where another worker began the new one."""
        job = await enqueue()
        await one_round(relay)
        await postgres.execute("UPDATE tandem_jobs SET check_at = check_at + 600000")
        observer.flushdb()
        observer.set("arq:queue:epoch", "another worker's")
        await one_round(relay)
        assert queued(observer) == [job.job_id]

    async def test_a_first_look_trusts_the_epoch_it_finds(
        self, relay: Relay, observer: redis.Redis, postgres: Observer
    ) -> None:
        """A new worker does not look after a million rows only because it is new."""
        await enqueue()
        observer.set("arq:queue:epoch", "since long")
        before = await postgres.fetchval("SELECT check_at FROM tandem_jobs")
        await one_round(relay)
        assert await postgres.fetchval("SELECT check_at FROM tandem_jobs") == before

    @pytest.mark.parametrize("lost", ["payload", "place"])
    async def test_whichever_key_is_missing_is_repaired(
        self, relay: Relay, observer: redis.Redis, postgres: Observer, start: StartWorker, lost: str
    ) -> None:
        """D15: a job key without a place in the queue, and the reverse."""
        job = await enqueue()
        if lost == "payload":
            observer.delete(f"arq:job:{job.job_id}")
        else:
            observer.zrem("arq:queue", job.job_id)
        await all_due(postgres)
        await one_round(relay)
        assert queued(observer) == [job.job_id]
        async with start(count):
            assert await job.result(timeout=5) == 1
        assert RUNS == [1]

    async def test_a_claimed_job_without_payload_is_recalled(
        self, start: StartWorker, ledger: Ledger, observer: redis.Redis
    ) -> None:
        """Redis has evicted the payload and kept the place: the job runs, and does not expire."""
        job = await enqueue()
        observer.delete(f"arq:job:{job.job_id}")
        async with start(count, ledger=ledger):
            assert await job.result(timeout=5) == 1

    async def test_a_kept_result_does_not_count(
        self, relay: Relay, start: StartWorker, ledger: Ledger, observer: redis.Redis, postgres: Observer
    ) -> None:
        """D15: a failed row is pending again while its old result is kept: it runs."""
        job = await enqueue()
        async with start(count, ledger=ledger) as one:
            assert await job.result(timeout=5) == 1
            await one.idle()
        assert observer.exists(f"arq:result:{job.job_id}")
        await postgres.execute("UPDATE tandem_jobs SET state = 'pending', check_at = 0")
        await one_round(relay)
        assert not observer.exists(f"arq:result:{job.job_id}")
        async with start(count, ledger=ledger) as one:
            await one.idle()
        assert RUNS == [1, 1]


class TestRaces:
    async def test_a_job_that_finishes_meanwhile_is_not_published(
        self, queue: Queue, ledger: Ledger, observer: redis.Redis, postgres: Observer
    ) -> None:
        """D16: pending when it was taken, unknown to Redis when that was asked, and done before it was read again."""
        job = await enqueue()
        observer.flushdb()

        class Racing(Ledger):
            async def unpublished(self, keys: Iterable[tuple[str, int]]) -> list[Unpublished]:
                asked = list(keys)
                await ledger.settle([Ending(*key, "count", "arq:queue", State.DONE) for key in asked])
                return await super().unpublished(asked)

        await all_due(postgres)
        await Relay(queue, Racing(), [queue.name])._round()
        assert queued(observer) == []
        assert (await ledger.latest(job.job_id) or {})["state"] == "done"

    async def test_several_relays_publish_each_row_once(
        self, queue: Queue, ledger: Ledger, observer: redis.Redis, postgres: Observer
    ) -> None:
        """Rows that one has taken the others pass over."""
        async with db.scope():
            await count.enqueue_many([{"number": number} for number in range(1200)])
        observer.flushdb()
        await all_due(postgres)
        relays = [Relay(queue, ledger, [queue.name]) for _ in range(4)]
        taken = await asyncio.gather(*(relay._round() for relay in relays))
        assert sum(taken) == 1200
        assert len(queued(observer)) == 1200

    async def test_what_redis_has_is_left_alone_and_put_off(
        self, relay: Relay, observer: redis.Redis, postgres: Observer
    ) -> None:
        """A job that merely waits is looked at less and less often."""
        await enqueue()
        gaps = []
        for _ in range(9):
            await all_due(postgres)
            await relay._round()
            gap = "SELECT check_at - extract(epoch FROM clock_timestamp()) * 1000 FROM tandem_jobs"
            gaps.append(round(float(await postgres.fetchval(gap)) / 1000))
        assert gaps == [5, 10, 20, 40, 80, 160, 320, 600, 600]
        assert observer.zcard("arq:queue") == 1


class TestTime:
    async def test_a_deferred_job_keeps_its_time(self, relay: Relay, observer: redis.Redis, postgres: Observer) -> None:
        """It is published with what is left of its delay, by Redis' clock."""
        job = await enqueue(delay=60)
        observer.flushdb()
        await all_due(postgres)
        await one_round(relay)
        now: Any = observer.time()
        due: Any = observer.zscore("arq:queue", job.job_id)
        assert 55 < due / 1000 - now[0] < 62

    async def test_it_is_not_looked_at_before_it_is_due(self, relay: Relay, postgres: Observer) -> None:
        """Its next look is past its due time."""
        await enqueue(delay=3600)
        await all_due(postgres)
        await relay._round()
        assert await postgres.fetchval("SELECT check_at - due FROM tandem_jobs") == 5000

    async def test_an_expired_job_is_over(
        self, relay: Relay, ledger: Ledger, observer: redis.Redis, postgres: Observer
    ) -> None:
        """One that said how long it may wait is not published after that."""
        job = await enqueue(expires=0.001)
        observer.flushdb()
        await asyncio.sleep(0.01)
        await all_due(postgres)
        await one_round(relay)
        assert queued(observer) == []
        assert (await ledger.latest(job.job_id) or {})["state"] == "expired"

    @pytest.mark.usefixtures("queue", "database")
    async def test_without_expiry_it_waits_as_long_as_it_takes(self, observer: redis.Redis) -> None:
        """A job that was enqueued in a transaction expires only if it says so."""
        job = await enqueue()
        ttl: Any = observer.pttl(f"arq:job:{job.job_id}")
        assert ttl > 10 * 365 * 86400 * 1000


class TestTrouble:
    async def test_while_redis_is_away_nothing_is_lost(
        self, ledger: Ledger, observer: redis.Redis, postgres: Observer, queue: Queue
    ) -> None:
        """A round that fails has put its rows off by seconds; the next one publishes them."""
        job = await enqueue()
        observer.flushdb()
        await all_due(postgres)
        away = Queue("redis://127.0.0.1:1/0")
        with pytest.raises(redis.ConnectionError):
            await Relay(away, ledger, [queue.name])._round()
        gap = "SELECT check_at - extract(epoch FROM clock_timestamp()) * 1000 FROM tandem_jobs"
        assert float(await postgres.fetchval(gap)) < 6000
        await all_due(postgres)
        await Relay(queue, ledger, [queue.name])._round()
        assert queued(observer) == [job.job_id]

    async def test_an_id_that_is_used_again(
        self, start: StartWorker, ledger: Ledger, seen: Seen, observer: redis.Redis, postgres: Observer
    ) -> None:
        """D14: run X, let its result go, run X again: two rows, two runs."""
        async with start(count, ledger=ledger) as one:
            first = await enqueue(job_id="X")
            assert await first.result(timeout=5) == 1
            assert not (await enqueue(job_id="X")).is_new  # its result is kept
            observer.delete("arq:result:X")
            with pytest.raises(ResultNotFoundError):
                await worker.Job[int]("Y").result(timeout=5)
            second = await enqueue(job_id="X")
            assert second.is_new
            assert await second.result(timeout=5) == 1
            await one.idle()
        assert RUNS == [1, 1]
        assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs WHERE state = 'done'") == 2
        assert seen.left() == set()

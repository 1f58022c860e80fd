"""The relay: it publishes pending rows to Redis, whatever Redis has lost; on a real Redis and PostgreSQL."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import redis
from sqlalchemy import text

import db
import worker
from db.database import Database
from tests.conftest import StartRedis
from tests.proxy import Proxy
from tests.servers import Observer
from tests.waiting import eventually
from tests.worker.engine.conftest import Seen, StartWorker
from worker import Broker, task
from worker.engine.relay import Relay, _Lap
from worker.errors import ResultNotFoundError
from worker.ledger import FinalRow, Ledger, RelayRow, State

RUNS: list[int] = []
CLOCK = text("SELECT extract(epoch FROM clock_timestamp())")


@task
async def count(number: int = 0) -> int:
    RUNS.append(number)
    return number


pytestmark = pytest.mark.usefixtures("broker", "database")


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    RUNS.clear()


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


@pytest.fixture
def relay(broker: Broker, ledger: Ledger) -> Relay:
    """A relay that the test drives by hand."""
    return Relay(broker, ledger, [broker.name])


@pytest.fixture(autouse=True)
def _no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each lap begins when the one before it is over."""
    monkeypatch.setattr("worker.engine.relay._SHORTEST_REST", 0.0)
    monkeypatch.setattr("worker.engine.relay._REST_FOR_LAP", 0)


async def one_round(relay: Relay) -> None:
    await relay._watch_epochs()
    await relay._round()


async def one_lap(relay: Relay) -> int:
    """How many rows it has gone through."""
    seen = 0
    while (rows := await relay._round()) == 500:
        seen += rows
    return seen + rows


async def enqueue(**using: Any) -> "worker.Job[int]":
    """A job that was enqueued in a transaction."""
    async with db.scope():
        return await count.using(**using).enqueue(1)


async def enqueue_many(number: int) -> list[str]:
    """The ids of jobs that were enqueued in a transaction, in order."""
    async with db.scope():
        return sorted(job.job_id for job in await count.enqueue_many([{}] * number))


async def all_due(postgres: Observer) -> None:
    """Let every row be looked after by the next round."""
    await postgres.execute("UPDATE tandem_jobs SET check_at = 0 WHERE state = 'pending'")


def queued(observer: redis.Redis) -> list[str]:
    found: Any = observer.zrange("arq:queue", 0, -1)
    return list(found)


class TestLosses:
    async def test_after_a_flush_of_redis_every_job_enqueued_in_a_transaction_runs_once(
        self, start: StartWorker, ledger: Ledger, observer: redis.Redis, postgres: Observer
    ) -> None:
        """D9: 100 jobs run within five seconds."""
        async with db.scope():
            await count.enqueue_many([{"number": number} for number in range(100)])
        await postgres.execute("UPDATE tandem_jobs SET check_at = check_at + 600000")  # as if they were due later
        observer.flushdb()
        async with start(count, ledger=ledger):
            await eventually(lambda: len(RUNS) >= 100, timeout=5)
            await eventually(
                lambda: postgres.fetchval("SELECT count(*) FROM tandem_jobs WHERE state = 'done'"), equals=100
            )
        assert sorted(RUNS) == list(range(100))

    async def test_a_relay_that_sees_a_new_epoch_publishes_all_pending_rows(
        self, relay: Relay, observer: redis.Redis, postgres: Observer
    ) -> None:
        """Also where another worker began the new epoch."""
        job = await enqueue()
        await one_round(relay)
        await postgres.execute("UPDATE tandem_jobs SET check_at = check_at + 600000")
        observer.flushdb()
        observer.set("arq:queue:epoch", "another worker's")
        await one_round(relay)
        assert queued(observer) == [job.job_id]

    async def test_a_new_relay_trusts_the_epoch_that_it_finds(
        self, relay: Relay, observer: redis.Redis, postgres: Observer
    ) -> None:
        """A new worker does not read a million rows because it is new."""
        await enqueue()
        observer.set("arq:queue:epoch", "since long")
        before = await postgres.fetchval("SELECT check_at FROM tandem_jobs")
        await one_round(relay)
        assert await postgres.fetchval("SELECT check_at FROM tandem_jobs") == before

    async def test_a_committed_job_that_never_reached_redis_runs_before_the_worker_is_idle(
        self, relay: Relay, start: StartWorker, ledger: Ledger, observer: redis.Redis
    ) -> None:
        """It is published before the worker finds nothing left to do."""
        await one_round(relay)
        job = await enqueue()
        observer.delete("arq:queue", f"arq:job:{job.job_id}")
        async with start(count, ledger=ledger) as worker_:
            await worker_.idle()
        assert RUNS == [1]

    @pytest.mark.parametrize("lost", ["payload", "place"])
    async def test_a_job_without_its_payload_or_its_place_in_the_queue_is_published_again(
        self, relay: Relay, observer: redis.Redis, postgres: Observer, start: StartWorker, lost: str
    ) -> None:
        """D15: one of a job's two keys is missing."""
        job = await enqueue()
        if lost == "payload":
            observer.delete(f"arq:job:{job.job_id}")
        else:
            observer.zrem("arq:queue", job.job_id)
        await all_due(postgres)
        await one_round(relay)
        assert queued(observer) == [job.job_id]
        async with start(count):
            assert await job.result(timeout=30) == 1
        assert RUNS == [1]

    async def test_a_claimed_job_whose_payload_was_evicted_gets_it_from_its_row(
        self, start: StartWorker, ledger: Ledger, observer: redis.Redis
    ) -> None:
        """Redis has kept the place: the job runs, and does not expire."""
        job = await enqueue()
        observer.delete(f"arq:job:{job.job_id}")
        async with start(count, ledger=ledger):
            assert await job.result(timeout=30) == 1

    async def test_a_pending_row_is_published_although_an_old_result_is_kept(
        self, relay: Relay, start: StartWorker, ledger: Ledger, observer: redis.Redis, postgres: Observer
    ) -> None:
        """D15: a failed row is set pending while its old result is kept: the job runs again."""
        ledger = Ledger(keep_arguments=True)  # a retry by hand finds the arguments of a failed row, too
        job = await enqueue()
        async with start(count, ledger=ledger) as one:
            assert await job.result(timeout=30) == 1
            await one.idle()
        assert observer.exists(f"arq:result:{job.job_id}")
        await postgres.execute("UPDATE tandem_jobs SET state = 'pending', check_at = 0")
        await one_round(relay)
        assert not observer.exists(f"arq:result:{job.job_id}")
        async with start(count, ledger=ledger) as one:
            await one.idle()
        assert RUNS == [1, 1]


class TestEpochs:
    async def test_jobs_published_before_a_second_flush_are_published_again(
        self, broker: Broker, observer: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Redis is flushed again while the relay publishes."""
        monkeypatch.setattr("worker.engine.relay._BATCH", 10)
        jobs = await enqueue_many(40)
        observer.flushdb()

        class Flushing(Ledger):
            pieces = 0

            async def pending_after(self, *arguments: Any) -> list[tuple[str, int, str]]:
                self.pieces += 1
                if self.pieces == 4:
                    observer.flushdb()
                return await super().pending_after(*arguments)

        relay = Relay(broker, Flushing(), [broker.name])
        await relay._watch_epochs()
        assert 0 < len(queued(observer)) < 40
        await relay._watch_epochs()
        assert sorted(queued(observer)) == jobs

    async def test_a_new_worker_starts_over_after_one_that_died_while_publishing(
        self, broker: Broker, relay: Relay, observer: redis.Redis, postgres: Observer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An epoch is trusted only once all pending rows were looked at in it."""
        monkeypatch.setattr("worker.engine.relay._BATCH", 10)
        jobs = await enqueue_many(40)
        await postgres.execute("UPDATE tandem_jobs SET check_at = check_at + 600000")
        observer.flushdb()

        class Dying(Ledger):
            pieces = 0

            async def pending_after(self, *arguments: Any) -> list[tuple[str, int, str]]:
                self.pieces += 1
                if self.pieces == 3:
                    raise SystemExit
                return await super().pending_after(*arguments)

        with pytest.raises(SystemExit):
            await Relay(broker, Dying(), [broker.name])._watch_epochs()
        assert len(queued(observer)) < 40
        await one_round(relay)
        assert sorted(queued(observer)) == jobs

    async def test_several_relays_publish_the_jobs_lost_in_a_flush_once_each(
        self, broker: Broker, ledger: Ledger, observer: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """All end with the same epoch, and none begins another."""
        monkeypatch.setattr("worker.engine.relay._BATCH", 10)
        relays = [Relay(broker, ledger, [broker.name]) for _ in range(3)]
        for relay in relays:
            await one_round(relay)
        jobs = await enqueue_many(100)
        observer.flushdb()
        published = await asyncio.gather(*(relay._sweep([broker.name]) for relay in relays))
        assert sum(published) == 100
        assert sorted(queued(observer)) == jobs
        await asyncio.gather(*(relay._watch_epochs() for relay in relays))
        assert await asyncio.gather(*(relay._epochs.current([broker.name]) for relay in relays)) == [
            {broker.name: epoch.encode()} for epoch in [str(observer.get("arq:queue:epoch"))] * 3
        ]
        assert {relay._trusted[broker.name] for relay in relays} == {str(observer.get("arq:queue:epoch")).encode()}

    async def test_relays_that_sweep_at_once_start_at_different_rows(
        self, broker: Broker, observer: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So they share the work, although all ids of one hour begin with the same digits."""
        monkeypatch.setattr("worker.engine.relay._BATCH", 10)
        jobs = await enqueue_many(100)
        first: list[str] = []

        class Watched(Ledger):
            """A ledger that notes where the relay begins."""

            async def pending_at(self, permille: int) -> str:
                first.append(await super().pending_at(permille))
                return first[-1]

        for _ in range(20):
            observer.flushdb()
            assert await Relay(broker, Watched(), [broker.name])._sweep([broker.name]) == 100
        assert len({jobs.index(job_id) // 10 for job_id in first}) >= 4

    async def test_only_the_rows_of_a_queue_that_was_lost_are_published_again(
        self, broker: Broker, ledger: Ledger, observer: redis.Redis, postgres: Observer
    ) -> None:
        """Each queue has an epoch of its own."""
        relay = Relay(broker, ledger, [broker.name, "{mail}"])
        await one_round(relay)
        here, there = await enqueue(), await enqueue(queue="{mail}")
        observer.flushdb()
        observer.set("arq:queue:epoch", relay._trusted[broker.name].decode())
        await relay._watch_epochs()
        assert (queued(observer), observer.zrange("{mail}", 0, -1)) == ([], [there.job_id])
        await all_due(postgres)
        await relay._round()
        assert queued(observer) == [here.job_id]


class TestQueues:
    @pytest.mark.parametrize("name", ["reports", "{mail}"])
    async def test_rows_of_queues_that_the_relays_worker_does_not_serve_are_published(
        self, relay: Relay, observer: redis.Redis, postgres: Observer, name: str
    ) -> None:
        """No worker of that queue may have started yet."""
        job = await enqueue(queue=name)
        observer.flushdb()
        await all_due(postgres)
        await relay._round()
        assert observer.zrange(name, 0, -1) == [job.job_id]

    async def test_rows_of_a_queue_that_redis_refuses_stay_and_those_of_other_queues_are_published(
        self, redis_url: str, ledger: Ledger, observer: redis.Redis, postgres: Observer
    ) -> None:
        """A Redis Cluster refuses queues without a hash tag."""

        class Refusing(Broker):
            async def exists(self, queue: str, job_ids: Sequence[str]) -> list[bool]:
                if queue == "refused":
                    raise worker.WorkerError("a Redis Cluster serves hash-tagged queues only")
                return await super().exists(queue, job_ids)

        await enqueue(queue="refused")
        job = await enqueue()
        observer.flushdb()
        await all_due(postgres)
        refusing = Refusing(redis_url)
        await Relay(refusing, ledger, [refusing.name])._round()
        await refusing.close()
        assert queued(observer) == [job.job_id]
        assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs WHERE state = 'pending'") == 2

    async def test_a_queue_whose_key_is_no_queue_does_not_stop_the_rows_of_other_queues(
        self, relay: Relay, observer: redis.Redis, postgres: Observer
    ) -> None:
        """The error is raised after the others, also later ones, are published."""
        await enqueue(queue="other")
        job = await enqueue()
        observer.flushdb()
        observer.set("other", "is no queue")
        await postgres.execute("UPDATE tandem_jobs SET check_at = (queue <> 'other')::int")
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            await relay._round()
        assert queued(observer) == [job.job_id]

    @pytest.mark.usefixtures("ledger")
    async def test_large_rows_are_read_a_few_at_a_time(
        self, broker: Broker, observer: redis.Redis, postgres: Observer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Many large jobs that Redis has lost are not all in memory at once. All are published."""
        monkeypatch.setattr("worker.ledger.ledger._AT_ONCE", 150_000)
        read: list[int] = []

        class Noting(Ledger):
            async def unpublished(self, keys: Iterable[tuple[str, int]]) -> list[RelayRow]:
                rows = await super().unpublished(keys)
                read.append(len(rows))
                return rows

        async with db.scope():
            await count.enqueue_many([{"number": 10**3000 + number} for number in range(120)])
        observer.flushdb()
        await all_due(postgres)
        await Relay(broker, Noting(), [broker.name])._round()
        assert len(queued(observer)) == sum(read) == 120
        assert 3 <= len(read) <= 4


class TestRaces:
    async def test_a_job_that_ends_while_the_relay_looks_at_it_is_not_published(
        self, broker: Broker, ledger: Ledger, observer: redis.Redis, postgres: Observer
    ) -> None:
        """D16: it was pending when it was read, unknown to Redis, and done before its payload was read."""
        job = await enqueue()
        observer.flushdb()

        class Racing(Ledger):
            async def unpublished(self, keys: Iterable[tuple[str, int]]) -> list[RelayRow]:
                asked = list(keys)
                await ledger.complete([FinalRow(*key, "count", "arq:queue", State.DONE) for key in asked])
                return await super().unpublished(asked)

        await all_due(postgres)
        await Relay(broker, Racing(), [broker.name])._round()
        assert queued(observer) == []
        assert (await ledger.latest(job.job_id) or {})["state"] == "done"

    async def test_several_relays_publish_each_row_once(
        self, broker: Broker, ledger: Ledger, observer: redis.Redis, postgres: Observer
    ) -> None:
        """Each goes through all rows."""
        async with db.scope():
            await count.enqueue_many([{"number": number} for number in range(1200)])
        observer.flushdb()
        await all_due(postgres)
        relays = [Relay(broker, ledger, [broker.name]) for _ in range(4)]
        assert await asyncio.gather(*(one_lap(relay) for relay in relays)) == [1200] * 4
        assert len(queued(observer)) == 1200

    async def test_a_locked_row_is_skipped_and_published_later(
        self, relay: Relay, observer: redis.Redis, postgres: Observer
    ) -> None:
        """Another relay, or a job that is about to write its outcome, holds it."""
        held, free = await enqueue(), await enqueue()
        observer.flushdb()
        await all_due(postgres)
        await postgres.execute("BEGIN")
        await postgres.execute("SELECT 1 FROM tandem_jobs WHERE id = $1 FOR UPDATE", held.job_id)
        async with asyncio.timeout(5):
            await relay._round()
        assert queued(observer) == [free.job_id]
        await postgres.execute("ROLLBACK")
        await relay._round()
        assert sorted(queued(observer)) == sorted([held.job_id, free.job_id])

    @pytest.mark.parametrize("known_to_redis", [True, False])
    async def test_the_relay_writes_no_pending_row(
        self, relay: Relay, observer: redis.Redis, postgres: Observer, known_to_redis: bool
    ) -> None:
        """The job may be running: its own transaction could not write the row at REPEATABLE READ then."""
        await enqueue()
        if not known_to_redis:
            observer.flushdb()
        await all_due(postgres)
        version = "SELECT ctid::text FROM tandem_jobs"
        before = await postgres.fetchval(version)
        for _ in range(3):
            await one_round(relay)
        assert await postgres.fetchval(version) == before
        assert observer.zcard("arq:queue") == 1

    @pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
    async def test_a_long_job_at_repeatable_read_or_serializable_starts_once(
        self, start: StartWorker, postgres: Observer, level: str
    ) -> None:
        """However often the relay looks at its row while it runs."""
        looked = 0

        class Counting(Ledger):
            async def due(self, *arguments: Any) -> list[tuple[int, str, int, str]]:
                nonlocal looked
                rows = await super().due(*arguments)
                looked += len(rows)
                return rows

        starts: list[int] = []

        @task(max_tries=1)
        async def long(session: db.AsyncSession) -> None:
            starts.append(1)
            await all_due(postgres)
            await session.connection(execution_options={"isolation_level": level})
            await session.execute(text("SELECT 1"))
            before = looked
            await eventually(lambda: looked >= before + 2, timeout=20)
            await session.execute(text("CREATE TABLE effect ()"))

        async with db.scope():
            job = await long.enqueue()
        async with start(long, ledger=Counting()):
            await job.result(timeout=30)
        assert starts == [1]
        assert await postgres.fetchval("SELECT state FROM tandem_jobs") == "done"


class TestLaps:
    def test_after_each_lap_the_relay_rests_for_twenty_times_as_long(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rows that become due meanwhile are still looked at."""
        now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: now)
        monkeypatch.setattr("worker.engine.relay._SHORTEST_REST", 5.0)
        monkeypatch.setattr("worker.engine.relay._REST_FOR_LAP", 20)
        lap = _Lap()
        assert lap.position() == (-1, "")
        lap.advance([(7, "a", 1, "q")] * 500)
        now += 2
        assert lap.position() == (7, "a")
        lap.advance([(9, "b", 1, "q")])
        now += 39
        assert lap.position() == (9, "b")
        lap.advance([(10, "c", 1, "q")])
        assert lap.position() == (10, "c")
        now += 1
        assert lap.position() == (-1, "")
        lap.advance([])
        now += 4.9
        assert lap.position() == (-1, "")
        assert not lap._is_running


class TestDueTimes:
    async def test_a_deferred_job_is_published_with_the_rest_of_its_delay(
        self, relay: Relay, observer: redis.Redis, postgres: Observer
    ) -> None:
        """By Redis' clock."""
        job = await enqueue(delay=60)
        observer.flushdb()
        await all_due(postgres)
        await one_round(relay)
        now: Any = observer.time()
        due: Any = observer.zscore("arq:queue", job.job_id)
        assert 55 < due / 1000 - now[0] < 62

    async def test_a_deferred_row_is_not_looked_at_before_it_is_due(self, relay: Relay) -> None:
        """Redis has the job already."""
        await enqueue(delay=3600)
        assert await relay._round() == 0

    async def test_a_job_published_again_keeps_its_place_and_its_time_to_expire(
        self, relay: Relay, observer: redis.Redis, postgres: Observer
    ) -> None:
        """The job that was due first runs first, and `expires` still counts from the enqueue."""
        jobs = [await enqueue(expires=1000) for _ in range(3)]
        observer.flushdb()
        for number, job in enumerate(reversed(jobs)):
            await postgres.execute("UPDATE tandem_jobs SET due = due - $1 WHERE id = $2", number * 300_000, job.job_id)
        await one_round(relay)
        assert queued(observer) == [job.job_id for job in jobs]
        left = [observer.pttl(f"arq:job:{job.job_id}") for job in jobs]
        assert [round(float(ms) / 1000, -2) for ms in left] == [400, 700, 1000]  # type: ignore[arg-type]

    @pytest.mark.parametrize("hours", [1, -1])
    async def test_delays_hold_although_the_databases_clock_is_an_hour_off(
        self, start: StartWorker, ledger: Ledger, observer: redis.Redis, postgres: Observer, hours: int
    ) -> None:
        """A job is looked at as soon as with a right clock."""
        await postgres.execute(
            "CREATE SCHEMA off;"
            "CREATE FUNCTION off.clock_timestamp() RETURNS timestamptz VOLATILE LANGUAGE sql AS"
            f" $$ SELECT pg_catalog.clock_timestamp() + interval '{hours} hours' $$"
        )
        await postgres.execute(
            f"ALTER DATABASE {await postgres.fetchval('SELECT current_database()')}"
            " SET search_path = off, pg_catalog, public"
        )
        async with db.scope():
            assert abs(float(await (await db.session()).scalar(CLOCK)) - time.time()) > 3500
        soon, later = await enqueue(expires=60), await enqueue(delay=600, expires=60)
        observer.flushdb()
        async with start(count, ledger=ledger) as one:
            assert await soon.result(timeout=30) == 1
            due: Any = await eventually(lambda: observer.zscore("arq:queue", later.job_id))
            now: Any = observer.time()
            assert 590 < due / 1000 - now[0] < 602
            observer.zrem("arq:queue", later.job_id)
            await eventually(lambda: not one.engine.jobs.executions)

    async def test_an_expired_job_is_not_published_and_its_row_is_set_expired(
        self, relay: Relay, ledger: Ledger, observer: redis.Redis, postgres: Observer
    ) -> None:
        """It waited longer than its `expires`."""
        job = await enqueue(expires=0.001)
        observer.flushdb()
        await asyncio.sleep(0.01)
        await all_due(postgres)
        await one_round(relay)
        assert queued(observer) == []
        assert (await ledger.latest(job.job_id) or {})["state"] == "expired"

    async def test_a_job_enqueued_in_a_transaction_without_expires_does_not_expire(self, observer: redis.Redis) -> None:
        """Its payload stays in Redis for ten years and more."""
        job = await enqueue()
        ttl: Any = observer.pttl(f"arq:job:{job.job_id}")
        assert ttl > 10 * 365 * 86400 * 1000


class TestOutages:
    async def test_rows_of_a_round_that_failed_without_redis_are_published_by_the_next(
        self, ledger: Ledger, observer: redis.Redis, postgres: Observer, broker: Broker
    ) -> None:
        """Redis refuses connections in the first round."""
        job = await enqueue()
        observer.flushdb()
        await all_due(postgres)
        away = Broker("redis://127.0.0.1:1/0")
        with pytest.raises(redis.ConnectionError):
            await (relay := Relay(away, ledger, [broker.name]))._round()
        relay._broker = broker
        await relay._round()
        assert queued(observer) == [job.job_id]

    async def test_an_epoch_is_not_trusted_until_the_database_is_up_again(
        self, database_url: str, start: StartWorker, observer: redis.Redis
    ) -> None:
        """Until then it is not known that all pending jobs are in Redis."""
        async with Proxy(database_url) as proxy:
            database = Database[db.AsyncSession](proxy.url, default=True, pre_ping=False)
            job = await enqueue()
            observer.flushdb()
            proxy.refuse()
            await proxy.drop()
            async with start(count, ledger=Ledger()):
                await eventually(lambda: str(observer.get("arq:queue:epoch")).startswith("?"))
                await proxy.resume()
                assert await job.result(timeout=30) == 1
                await eventually(lambda: not str(observer.get("arq:queue:epoch")).startswith("?"))
            await database.dispose()
            db.set_default_database(None)

    async def test_jobs_in_a_redis_that_restarts_empty_each_run_once_and_on_time(
        self, own_redis: StartRedis, ledger: Ledger, start: StartWorker, postgres: Observer
    ) -> None:
        """Redis is killed with 50 deferred jobs in it while a worker runs."""
        server = own_redis(save="", appendonly="no")
        broker = Broker(server.url, default=True)
        async with start(count, url=server.url, ledger=ledger, concurrency=1):
            async with db.scope():
                await count.using(delay=2).enqueue_many([{"number": number} for number in range(50)])
            server.kill()
            server.restart()
            await eventually(lambda: len(RUNS) == 50, timeout=15)
            await eventually(
                lambda: postgres.fetchval("SELECT count(*) FROM tandem_jobs WHERE state = 'done'"), equals=50
            )
        await broker.close()
        assert sorted(RUNS) == list(range(50))

    async def test_an_id_that_is_used_again_after_its_result_is_gone_is_a_second_job(
        self, start: StartWorker, ledger: Ledger, seen: Seen, observer: redis.Redis, postgres: Observer
    ) -> None:
        """D14: two rows, two runs."""
        async with start(count, ledger=ledger) as one:
            first = await enqueue(job_id="X")
            assert await first.result(timeout=30) == 1
            assert not (await enqueue(job_id="X")).is_new  # its result is kept
            observer.delete("arq:result:X")
            with pytest.raises(ResultNotFoundError):
                await worker.Job[int]("Y").result(timeout=30)
            second = await enqueue(job_id="X")
            assert second.is_new
            assert await second.result(timeout=30) == 1
            await one.idle()
        assert RUNS == [1, 1]
        assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs WHERE state = 'done'") == 2
        assert seen.left() == set()


async def test_the_relay_publishes_each_lost_job_once_on_sqlite(
    broker: Broker, sqlite_url: str, start: StartWorker, observer: redis.Redis
) -> None:
    """Jobs that Redis has lost are published after a flush, and again as they come due."""
    file = Database[db.AsyncSession](sqlite_url, default=True)
    ledger = Ledger()
    ids = await enqueue_many(20)
    observer.flushdb()
    relay = Relay(broker, ledger, [broker.name])
    await relay._watch_epochs()
    assert sorted(queued(observer)) == ids
    observer.delete("arq:queue")
    async with db.scope():
        await (await db.session()).execute(text("UPDATE tandem_jobs SET check_at = 0"))
    assert await relay._round() == 20
    assert sorted(queued(observer)) == ids
    async with start(count, ledger=ledger) as one:
        await one.idle()
    assert len(RUNS) == 20
    await file.dispose()
    db.set_default_database(None)

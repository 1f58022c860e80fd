"""Outcomes reach the ledger before Redis: a real engine on a real Redis and a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

import db
import worker
from db.database import Database
from tests.proxy import Proxy
from tests.servers import Observer
from tests.waiting import eventually
from tests.worker.conftest import NOTES, create_ledger
from tests.worker.engine.conftest import Seen, StartWorker
from tests.worker.new_jobs import new_job
from worker import Queue, task
from worker.ledger import Ending, Known, Ledger, State
from worker.message import encode
from worker.new_job import NewJob

NO_ODD_ONES = "ALTER TABLE tandem_jobs ADD CONSTRAINT no_odd_ones CHECK (id <> 'odd')"
NO_ODD_TRIGGER = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''no''; END';
    CREATE TRIGGER no_odd_ones BEFORE INSERT ON tandem_jobs
        FOR EACH ROW WHEN (NEW.id = 'odd') EXECUTE FUNCTION refuse();
"""
NO_LARGE_ONES = """
    CREATE FUNCTION hang_up() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NEW; END';
    CREATE TRIGGER no_large_ones BEFORE INSERT ON tandem_jobs
        FOR EACH ROW WHEN (length(NEW.payload) > 100000) EXECUTE FUNCTION hang_up();
"""


class OddError(Exception):
    """Not one of Python's own."""


@task
async def idle() -> int:
    return 7


@task
async def fail(words: str) -> None:
    raise OddError(words)


@pytest.fixture
def ledger(database: Database[db.AsyncSession]) -> Ledger:
    return Ledger()


@pytest.fixture
async def proxy(database_url: str, postgres: Observer) -> AsyncIterator[Proxy]:
    """Stands between the default database and its server."""
    await postgres.execute(NOTES)
    await create_ledger(database_url)
    async with Proxy(database_url) as proxy:
        database = Database(proxy.url, default=True, pre_ping=False)
        yield proxy
        await database.dispose()


async def row(job_id: str) -> dict[str, Any]:
    return dict(await Ledger().latest(job_id) or {})


class TestFailures:
    async def test_a_job_that_fails_for_good_is_kept(self, start: StartWorker, ledger: Ledger) -> None:
        """With its payload, error, traceback and tries; also one that was enqueued directly."""
        async with start(fail, ledger=ledger) as worker_:
            job = await fail.enqueue("no\0ne")
            with pytest.raises(worker.JobFailed):
                await job.result(timeout=30)
            await worker_.idle()
        kept = await row(job.job_id)
        assert (kept["state"], kept["tries"], kept["task"]) == ("failed", 1, "fail")
        assert kept["error"] == "tests.worker.engine.test_ledger_completer.OddError: no\\x00ne"
        assert "raise OddError(words)" in kept["traceback"]
        assert b'"words":' in kept["payload"] or b"no" in kept["payload"]
        assert kept["started_at"] <= kept["finished_at"]

    async def test_a_retry_is_not_final(self, start: StartWorker, ledger: Ledger, postgres: Observer) -> None:
        """While tries are left nothing is written."""

        looked = asyncio.Event()

        @task(max_tries=2)
        async def again() -> None:
            if worker.current_job().attempt == 2:
                await looked.wait()
            raise worker.Retry

        async with start(again, ledger=ledger) as worker_:
            await again.enqueue()
            await eventually(lambda: worker_.engine._log.counts["retried"] == 1)
            assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs") == 0
            looked.set()
            await worker_.idle()
        assert await postgres.fetchval("SELECT tries FROM tandem_jobs WHERE state = 'failed'") == 2

    async def test_what_another_attempt_has_done_is_not_called_a_failure(
        self, start: StartWorker, ledger: Ledger
    ) -> None:
        """The outcome is what the database says: a late attempt that fails has the result of the one that committed."""
        release = asyncio.Event()

        @task
        async def outrun() -> int:
            await release.wait()
            raise OddError

        async with start(outrun, ledger=ledger):
            job = await outrun.enqueue()
            info = await job.info()
            assert info is not None
            enqueued_at = round(info.enqueued_at.timestamp() * 1000)
            await ledger.settle([Ending(job.job_id, enqueued_at, "outrun", "arq:queue", State.DONE, result=b"7")])
            release.set()
            assert await job.result(timeout=30) == 7
        assert await ledger.look_up(job.job_id, enqueued_at) == Known(State.DONE, b"7")


class TestRefused:
    @pytest.mark.parametrize("job_id", ["a\0b", "".join(f"{n:x}" for n in range(3000))], ids=["NUL", "too long"])
    async def test_a_row_that_no_database_can_hold(
        self, start: StartWorker, queue: Queue, ledger: Ledger, job_id: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """What became of the job is in Redis and in the log, and the outcomes behind it are kept as ever."""
        stock = b'{"t":1,"f":"fail","a":["why"],"k":{},"et":1}'
        await queue.enqueue([new_job(job_id, stock, queue.name)])
        async with start(fail, ledger=ledger) as worker_:
            kept = await fail.enqueue("words")
            for failing in (worker.Job[None](job_id), kept):
                with pytest.raises(worker.JobFailed):
                    await failing.result(timeout=30)
            await worker_.idle()
        assert (await row(kept.job_id))["state"] == "failed"
        assert "the ledger cannot keep what became of it" in caplog.text

    async def test_a_task_of_such_a_name(self, start: StartWorker, queue: Queue, ledger: Ledger) -> None:
        """It is kept under a name that can be written."""
        await queue.enqueue([new_job("odd", b'{"t":1,"f":"no\\u0000ne","a":[],"k":{},"et":1}', queue.name)])
        async with start(fail, ledger=ledger, unknown_for=0) as worker_:
            await worker_.idle()
        assert ((await row("odd"))["state"], (await row("odd"))["task"]) == ("failed", "no\\x00ne")

    @pytest.mark.parametrize("obstacle", [NO_ODD_ONES, NO_LARGE_ONES], ids=["refused", "loses its connection"])
    async def test_what_the_database_never_takes(
        self, start: StartWorker, ledger: Ledger, postgres: Observer, caplog: pytest.LogCaptureFixture, obstacle: str
    ) -> None:
        """A row that fails again and again, while others are written, is Redis' and the log's alone."""
        await postgres.execute(obstacle)
        async with start(fail, ledger=ledger) as worker_:
            odd = await fail.using(job_id="odd").enqueue("x" * 200_000)
            kept: list[worker.Job[None]] = []

            async def odd_one_has_ended() -> bool:
                kept.append(await fail.enqueue("words"))
                return await odd.status() == "complete"

            await eventually(odd_one_has_ended)
            await worker_.idle()
        assert [(await row(job.job_id)).get("state") for job in (odd, *kept)] == [None, *["failed"] * len(kept)]
        assert "odd: the ledger cannot keep what became of it" in caplog.text

    @pytest.mark.parametrize("obstacle", [NO_ODD_ONES, NO_ODD_TRIGGER], ids=["constraint", "trigger"])
    async def test_a_refused_row_with_nothing_behind_it(
        self, start: StartWorker, ledger: Ledger, postgres: Observer, obstacle: str
    ) -> None:
        """On a queue where nothing else is written, too, it costs one failure, and not the worker."""
        await postgres.execute(obstacle)
        async with start(fail, ledger=ledger) as worker_:
            with pytest.raises(worker.JobFailed):
                await (await fail.using(job_id="odd").enqueue("words")).result(timeout=20)
            await worker_.idle()
        assert await row("odd") == {}

    async def test_a_pending_row_is_settled_all_the_same(
        self, start: StartWorker, ledger: Ledger, postgres: Observer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without its result, which the database does not take: left pending, its job would run for ever."""
        monkeypatch.setattr("worker.engine.relay._SHORTEST_REST", 0.0)
        await postgres.execute("ALTER TABLE tandem_jobs ADD CONSTRAINT no_large_ones CHECK (length(result) < 100000)")
        runs: list[int] = []

        @task
        async def large() -> str:
            runs.append(1)
            return "x" * 200_000

        async with start(large, fail, ledger=ledger) as worker_:
            async with db.scope():
                job = await large.enqueue()

            async def it_has_ended() -> bool:
                await fail.enqueue("words")
                return await job.status() == "complete"

            await eventually(it_has_ended)
            assert len(await job.result(timeout=5)) == 200_000
            await worker_.idle()
            await postgres.execute("UPDATE tandem_jobs SET check_at = 0 WHERE state = 'pending'")
            await worker_.idle()
        assert (await row(job.job_id))["state"] == "done"
        assert runs == [1]


class TestLarge:
    """Jobs with large arguments that fail: each has a row that takes long."""

    async def test_many_on_a_slow_network(
        self, proxy: Proxy, start: StartWorker, postgres: Observer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They are written in small transactions, and the time that takes is not taken for a lock."""
        monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 0.2)
        proxy.rate = 4_000_000  # bytes a second
        async with start(fail, ledger=Ledger()) as worker_:
            await fail.enqueue_many({"words": "x" * 500_000} for _ in range(20))
            await worker_.idle(timeout=30)
        assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs WHERE state = 'failed'") == 20

    async def test_beside_a_row_that_is_locked(
        self, start: StartWorker, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The statement that waits for the lock is given up, whatever is to follow it; the others are written."""
        monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 0.2)
        async with db.independent() as session:
            await ledger.mark_done(session, Ending("held", 5, "fail", "arq:queue", State.DONE, result=b"8"))
            others = ["other1", "other2", "other3", "other4"]  # sent after it
            await worker.default_queue().enqueue([_entry(job_id, 5, b"x" * 900_000) for job_id in ["held", *others]])
            async with start(fail, ledger=ledger):
                for job_id in others:
                    with pytest.raises(worker.JobFailed):
                        await worker.Job[None](job_id).result(timeout=15)
                await session.commit()
                assert await worker.Job[int]("held").result(timeout=30) == 8


class TestPendingRows:
    async def test_a_job_that_touches_nothing_settles_its_row(self, start: StartWorker, ledger: Ledger) -> None:
        """It was enqueued in a transaction, so its row is done, although its own work needed no database."""
        async with start(idle, ledger=ledger) as worker_:
            async with db.scope():
                job = await idle.enqueue()
            assert await job.result(timeout=30) == 7
            await worker_.idle()
        kept = await row(job.job_id)
        assert (kept["state"], kept["result"], kept["check_at"]) == ("done", b"7", None)

    async def test_an_aborted_one_likewise(self, start: StartWorker, ledger: Ledger) -> None:
        """Nobody will publish it again."""
        async with start(idle, ledger=ledger):
            async with db.scope():
                job = await idle.using(delay=60).enqueue()
            assert await job.abort(timeout=5)
        assert (await row(job.job_id))["state"] == "aborted"

    async def test_one_that_cannot_be_read_likewise(self, start: StartWorker, ledger: Ledger, queue: Queue) -> None:
        """It is failed, with the payload that its row has: nobody publishes it again and again."""
        async with db.scope():
            job = await idle.enqueue()
        await queue.redis.set(f"arq:job:{job.job_id}", b"garbage")
        async with start(idle, ledger=ledger) as worker_:
            with pytest.raises(worker.JobFailed):
                await job.result(timeout=30)
            await worker_.idle()
        kept = await row(job.job_id)
        assert (kept["state"], kept["task"]) == ("failed", "idle")
        assert b'"f":"idle"' in kept["payload"]

    async def test_one_without_a_promise_likewise(self, start: StartWorker, ledger: Ledger) -> None:
        """`once=False` gives up the guarantee, not the row: it is done once the job has returned."""

        @task(once=False)
        async def light() -> None: ...

        async with start(light, ledger=ledger) as worker_:
            async with db.scope():
                job = await light.enqueue()
            await job.result(timeout=30)
            await worker_.idle()
        assert (await row(job.job_id))["state"] == "done"


class TestTrouble:
    async def test_while_the_database_is_away_redis_hears_nothing(
        self, proxy: Proxy, start: StartWorker, seen: Seen
    ) -> None:
        """The lease is kept, and the outcome written when the database is back."""
        async with start(fail, ledger=Ledger()) as worker_:
            proxy.refuse()
            await proxy.drop()
            job = await fail.enqueue("late")
            await eventually(lambda: worker_.engine._log.counts["failed"] == 1)
            await asyncio.sleep(1.5)  # longer than the lease
            assert seen.result(job.job_id) == {}
            assert len(worker_.engine._executions) == 1
            await proxy.resume()
            with pytest.raises(worker.JobFailed):
                await job.result(timeout=30)
            assert worker_.engine._log.counts["failed"] == 1
        assert seen.left() == set()

    async def test_a_standstill_is_told(
        self,
        proxy: Proxy,
        start: StartWorker,
        seen: Seen,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """A worker whose outcomes reach no ledger is unwell, though nothing fails; at its end it says what is lost."""
        monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 60.0)
        monkeypatch.setattr("worker.engine.health._STANDSTILL", 1.0)
        monkeypatch.setattr("worker.engine.engine._FLUSHING", 0.5)
        async with start(fail, ledger=Ledger(), lease=5) as worker_:
            with pytest.raises(worker.JobFailed):
                await (await fail.enqueue("words")).result(timeout=30)
            await eventually(seen.well)
            proxy.blackhole()
            job = await fail.enqueue("words")
            await eventually(lambda: worker_.engine._ledger_completer.standstill > 1)
            await eventually(lambda: not seen.well())
            await worker_.drain()
            assert seen.result(job.job_id) == {}
            await proxy.resume()
        assert "1 outcomes could not be written" in caplog.text

    async def test_a_row_that_is_locked_does_not_keep_the_others(self, start: StartWorker, ledger: Ledger) -> None:
        """Another attempt holds one row: the outcomes of other jobs are written meanwhile."""
        async with start(fail, ledger=ledger, concurrency=3):
            held = Ending("held", 5, "fail", "arq:queue", State.DONE, result=b"8")
            async with db.independent() as session:
                await ledger.mark_done(session, held)
                stuck = await worker.default_queue().enqueue([_entry("held", 5), _entry("free", 5)])
                assert stuck == [True, True]
                with pytest.raises(worker.JobFailed):
                    await worker.Job[None]("free").result(timeout=30)
                await session.commit()
            assert await worker.Job[int]("held").result(timeout=30) == 8


def _entry(job_id: str, enqueued_at: int, words: bytes = b"x") -> NewJob:
    return new_job(job_id, encode("fail", b'{"words":"%b"}' % words, enqueued_at), "arq:queue")

"""The ledger completer: outcomes reach the ledger before Redis, on a real Redis and a real PostgreSQL."""

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
from worker import Broker, task
from worker.ledger import FinalRow, Ledger, State, StoredResult
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
    async def test_a_job_that_fails_for_good_has_a_failed_row(self, start: StartWorker, ledger: Ledger) -> None:
        """The row has payload, error, traceback and tries, also for a job enqueued outside a transaction."""
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

    async def test_a_retried_job_has_no_row_until_its_last_try(
        self, start: StartWorker, ledger: Ledger, postgres: Observer
    ) -> None:
        """While tries are left nothing is written."""

        looked = asyncio.Event()

        @task(max_tries=2)
        async def again() -> None:
            if worker.current_job().attempt == 2:
                await looked.wait()
            raise worker.Retry

        async with start(again, ledger=ledger) as worker_:
            await again.enqueue()
            await eventually(lambda: worker_.engine.counts["retried"] == 1)
            assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs") == 0
            looked.set()
            await worker_.idle()
        assert await postgres.fetchval("SELECT tries FROM tandem_jobs WHERE state = 'failed'") == 2

    async def test_an_attempt_that_fails_after_another_committed_has_the_committed_result(
        self, start: StartWorker, ledger: Ledger
    ) -> None:
        """The outcome is what the database says."""
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
            await ledger.complete([FinalRow(job.job_id, enqueued_at, "outrun", "arq:queue", State.DONE, result=b"7")])
            release.set()
            assert await job.result(timeout=30) == 7
        assert await ledger.look_up(job.job_id, enqueued_at) == StoredResult(State.DONE, b"7")


class TestRowsThatTheDatabaseRefuses:
    @pytest.mark.parametrize("job_id", ["a\0b", "".join(f"{n:x}" for n in range(3000))], ids=["NUL", "too long"])
    async def test_an_outcome_whose_id_the_database_cannot_store_is_kept_in_redis_and_the_log(
        self, start: StartWorker, broker: Broker, ledger: Ledger, job_id: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The outcomes behind it are written as usual."""
        stock = b'{"t":1,"f":"fail","a":["why"],"k":{},"et":1}'
        await broker.enqueue([new_job(job_id, stock, broker.name)])
        async with start(fail, ledger=ledger) as worker_:
            kept = await fail.enqueue("words")
            for failing in (worker.Job[None](job_id), kept):
                with pytest.raises(worker.JobFailed):
                    await failing.result(timeout=30)
            await worker_.idle()
        assert (await row(kept.job_id))["state"] == "failed"
        assert "the ledger cannot store its outcome" in caplog.text

    async def test_a_task_name_that_the_database_cannot_store_is_escaped(
        self, start: StartWorker, broker: Broker, ledger: Ledger
    ) -> None:
        """Its failed job has a row."""
        await broker.enqueue([new_job("odd", b'{"t":1,"f":"no\\u0000ne","a":[],"k":{},"et":1}', broker.name)])
        async with start(fail, ledger=ledger, unknown_for=0) as worker_:
            await worker_.idle()
        assert ((await row("odd"))["state"], (await row("odd"))["task"]) == ("failed", "no\\x00ne")

    @pytest.mark.parametrize("obstacle", [NO_ODD_ONES, NO_LARGE_ONES], ids=["refused", "loses its connection"])
    async def test_a_row_that_always_fails_while_others_are_written_is_given_up(
        self, start: StartWorker, ledger: Ledger, postgres: Observer, caplog: pytest.LogCaptureFixture, obstacle: str
    ) -> None:
        """The outcome is kept in Redis and in the log alone."""
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
        assert "job odd: the ledger cannot store its outcome" in caplog.text

    @pytest.mark.parametrize("obstacle", [NO_ODD_ONES, NO_ODD_TRIGGER], ids=["constraint", "trigger"])
    async def test_a_refused_row_on_an_idle_queue_fails_its_job_and_not_the_worker(
        self, start: StartWorker, ledger: Ledger, postgres: Observer, obstacle: str
    ) -> None:
        """No other outcome is written meanwhile."""
        await postgres.execute(obstacle)
        async with start(fail, ledger=ledger) as worker_:
            with pytest.raises(worker.JobFailed):
                await (await fail.using(job_id="odd").enqueue("words")).result(timeout=20)
            await worker_.idle()
        assert await row("odd") == {}

    async def test_a_pending_row_whose_result_is_refused_is_set_done_without_it(
        self, start: StartWorker, ledger: Ledger, postgres: Observer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A row left pending would be published, and its job would run, without end."""
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


class TestLargeRows:
    """Failed jobs with large arguments: each row takes long to send."""

    async def test_large_rows_on_a_slow_network_are_written_and_not_taken_for_locked(
        self, proxy: Proxy, start: StartWorker, postgres: Observer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """They are written in small transactions."""
        monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 0.2)
        proxy.rate = 4_000_000  # bytes a second
        async with start(fail, ledger=Ledger()) as worker_:
            await fail.enqueue_many({"words": "x" * 500_000} for _ in range(20))
            await worker_.idle(timeout=30)
        assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs WHERE state = 'failed'") == 20

    async def test_large_rows_are_written_although_one_beside_them_is_locked(
        self, start: StartWorker, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The statement that waits for the lock is given up, whatever follows it."""
        monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 0.2)
        async with db.independent() as session:
            await ledger.mark_done(session, FinalRow("held", 5, "fail", "arq:queue", State.DONE, result=b"8"))
            others = ["other1", "other2", "other3", "other4"]  # sent after it
            await worker.default_broker().enqueue([_entry(job_id, 5, b"x" * 900_000) for job_id in ["held", *others]])
            async with start(fail, ledger=ledger):
                for job_id in others:
                    with pytest.raises(worker.JobFailed):
                        await worker.Job[None](job_id).result(timeout=15)
                await session.commit()
                assert await worker.Job[int]("held").result(timeout=30) == 8


class TestPendingRows:
    async def test_a_job_that_touches_no_database_has_its_pending_row_set_done(
        self, start: StartWorker, ledger: Ledger
    ) -> None:
        """It was enqueued in a transaction, so it has a row."""
        async with start(idle, ledger=ledger) as worker_:
            async with db.scope():
                job = await idle.enqueue()
            assert await job.result(timeout=30) == 7
            await worker_.idle()
        kept = await row(job.job_id)
        assert (kept["state"], kept["result"], kept["check_at"]) == ("done", b"7", None)

    async def test_a_job_aborted_before_it_is_due_has_its_pending_row_set_aborted(
        self, start: StartWorker, ledger: Ledger
    ) -> None:
        """So the relay does not publish it again."""
        async with start(idle, ledger=ledger):
            async with db.scope():
                job = await idle.using(delay=60).enqueue()
            assert await job.abort(timeout=5)
        assert (await row(job.job_id))["state"] == "aborted"

    async def test_an_unreadable_payload_sets_the_pending_row_failed(
        self, start: StartWorker, ledger: Ledger, broker: Broker
    ) -> None:
        """The row keeps its own payload, and the relay does not publish it again."""
        async with db.scope():
            job = await idle.enqueue()
        await broker.redis.set(f"arq:job:{job.job_id}", b"garbage")
        async with start(idle, ledger=ledger) as worker_:
            with pytest.raises(worker.JobFailed):
                await job.result(timeout=30)
            await worker_.idle()
        kept = await row(job.job_id)
        assert (kept["state"], kept["task"]) == ("failed", "idle")
        assert b'"f":"idle"' in kept["payload"]

    async def test_a_once_false_job_has_its_pending_row_set_done(self, start: StartWorker, ledger: Ledger) -> None:
        """`once=False` gives up the guarantee, not the row."""

        @task(once=False)
        async def light() -> None: ...

        async with start(light, ledger=ledger) as worker_:
            async with db.scope():
                job = await light.enqueue()
            await job.result(timeout=30)
            await worker_.idle()
        assert (await row(job.job_id))["state"] == "done"


class TestOutages:
    async def test_an_outcome_is_not_sent_to_redis_while_the_database_is_down(
        self, proxy: Proxy, start: StartWorker, seen: Seen
    ) -> None:
        """The lease is kept, and the outcome is written when the database is back."""
        async with start(fail, ledger=Ledger()) as worker_:
            await worker_.trusts_redis()
            proxy.refuse()
            await proxy.drop()
            job = await fail.enqueue("late")
            await eventually(lambda: worker_.engine.counts["failed"] == 1)
            await asyncio.sleep(1.5)  # longer than the lease
            assert seen.result(job.job_id) == {}
            assert len(worker_.engine.jobs.executions) == 1
            await proxy.resume()
            with pytest.raises(worker.JobFailed):
                await job.result(timeout=30)
            assert worker_.engine.counts["failed"] == 1
        assert seen.left() == set()

    async def test_a_worker_whose_outcomes_reach_no_ledger_is_unhealthy(
        self,
        proxy: Proxy,
        start: StartWorker,
        seen: Seen,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Nothing fails meanwhile. At its end the worker logs what could not be written."""
        monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 60.0)
        monkeypatch.setattr("worker.engine.health._STANDSTILL", 1.0)
        monkeypatch.setattr("worker.engine.engine._FLUSHING", 0.5)
        async with start(fail, ledger=Ledger(), lease=5) as worker_:
            with pytest.raises(worker.JobFailed):
                await (await fail.enqueue("words")).result(timeout=30)
            await eventually(seen.well)
            proxy.blackhole()
            job = await fail.enqueue("words")
            await eventually(lambda: worker_.engine.jobs.ledger_completer.standstill > 1)
            await eventually(lambda: not seen.well())
            await worker_.drain()
            assert seen.result(job.job_id) == {}
            await proxy.resume()
        assert "1 outcome could not be written" in caplog.text

    async def test_a_locked_row_does_not_delay_the_outcomes_of_other_jobs(
        self, start: StartWorker, ledger: Ledger
    ) -> None:
        """Another attempt holds the row."""
        async with start(fail, ledger=ledger, concurrency=3):
            held = FinalRow("held", 5, "fail", "arq:queue", State.DONE, result=b"8")
            async with db.independent() as session:
                await ledger.mark_done(session, held)
                stuck = await worker.default_broker().enqueue([_entry("held", 5), _entry("free", 5)])
                assert stuck == [True, True]
                with pytest.raises(worker.JobFailed):
                    await worker.Job[None]("free").result(timeout=30)
                await session.commit()
            assert await worker.Job[int]("held").result(timeout=30) == 8


def _entry(job_id: str, enqueued_at: int, words: bytes = b"x") -> NewJob:
    return new_job(job_id, encode("fail", b'{"words":"%b"}' % words, enqueued_at), "arq:queue")

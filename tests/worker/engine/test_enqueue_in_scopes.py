"""Jobs enqueued in a scope commit or roll back with it, whatever else its sessions do; on both databases."""

import asyncio
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

import db
from db.scope import current_scope
from db.session import owner
from db.session.classes import commit_here
from db.testing import rolled_back, savepoints
from tests.worker.engine.conftest import StartWorker
from tests.worker.engine.test_either_database import affect, affect_here, database, effects
from worker import Broker, Job, JobStatus, Task, task
from worker.broker.records import now_ms
from worker.errors import JobNotCommittedError, LedgerAwayError, ResultNotFoundError
from worker.ledger import Ledger

__all__ = ["database"]  # a fixture

pytestmark = pytest.mark.usefixtures("database", "broker")


async def run(start: StartWorker, *more: "Task[..., None]") -> list[str]:
    """Run all jobs and return the effects."""
    async with start(affect, *more, ledger=Ledger()) as one:
        await one.idle()
    return await effects()


def write(session: db.Session, words: str) -> None:
    session.execute(text("INSERT INTO effect (words) VALUES (:words)"), {"words": words})


class TestEnqueueDuringACommit:
    """A job enqueued while a COMMIT is under way belongs to the next COMMIT."""

    async def test_a_job_enqueued_during_a_commit_is_dropped_if_the_next_one_is_rolled_back(
        self, start: StartWorker
    ) -> None:
        """The job never exists, and its callback is not called."""
        told: list[str] = []

        async def hand_on() -> None:
            await affect.enqueue("rolled back")
            db.on_commit(lambda: told.append("rolled back"))

        with suppress(LookupError):
            async with db.scope():
                await affect_here(await db.session(), "own")
                await asyncio.gather(db.commit(), hand_on())
                raise LookupError
        assert await run(start) == ["own"]
        assert told == []

    async def test_a_job_enqueued_during_a_commit_is_published_by_the_next_one(self, start: StartWorker) -> None:
        """Until then it is neither in Redis nor in the ledger."""
        async with start(affect, ledger=Ledger()) as one:
            async with db.scope():
                session = await db.session()
                await affect_here(session, "own")
                _, job = await asyncio.gather(session.commit(), affect.enqueue("job"))
                assert (await one.broker.depth(one.broker.name), await job.info()) == (0, None)
            await one.idle()
        assert await effects() == ["job", "own"]

    async def test_a_job_enqueued_during_a_commit_in_a_thread_is_dropped_if_the_next_one_is_rolled_back(
        self, start: StartWorker, database: db.Database[db.AsyncSession], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The same where a `Session` commits in a thread."""
        loop = asyncio.get_running_loop()
        committing, go_on = asyncio.Event(), threading.Event()

        def slowly(session: db.Session) -> None:
            loop.call_soon_threadsafe(committing.set)
            go_on.wait(5)
            commit_here(session)

        monkeypatch.setattr(owner, "commit_here", slowly)
        with suppress(LookupError):
            async with db.scope():
                session = await db.session(database.sync)
                await asyncio.to_thread(write, session, "own")
                commit = asyncio.create_task(asyncio.to_thread(session.commit))
                await committing.wait()
                await affect.enqueue("rolled back")
                go_on.set()
                await commit
                raise LookupError
        assert await run(start) == ["own"]


class TestBlocks:
    """A block that fails drops the jobs enqueued in it, and no others."""

    async def test_a_begin_block_that_fails_drops_the_jobs_enqueued_in_it(self, start: StartWorker) -> None:
        """Of an `AsyncSession`, before its first statement."""
        async with db.scope():
            session = await db.session()
            await affect.enqueue("before")
            with suppress(LookupError):
                async with session.begin():
                    await affect.enqueue("in it")
                    raise LookupError
        assert await run(start) == ["before"]

    async def test_a_begin_block_that_fails_after_a_commit_keeps_what_was_committed(self, start: StartWorker) -> None:
        """The jobs committed inside the block are not written again."""
        async with db.scope():
            session = await db.session()
            await affect.enqueue("before")
            with suppress(LookupError):
                async with session.begin():
                    await db.commit()
                    await affect.enqueue("in it")
                    raise LookupError
        assert await run(start) == ["before"]

    async def test_a_begin_block_that_fails_in_a_sync_task_keeps_jobs_enqueued_before_it(
        self, start: StartWorker
    ) -> None:
        """Of a `Session`."""

        @task
        def plain(session: db.Session, words: str) -> None:
            asyncio.run(affect.enqueue(f"{words}, child"))
            with suppress(LookupError), session.begin():
                write(session, f"{words}, lost")
                raise LookupError

        async with db.scope():
            await plain.enqueue("good")
        assert await run(start, plain) == ["good, child"]

    async def test_a_begin_block_of_a_sync_session_that_fails_after_a_commit_keeps_what_was_committed(
        self, start: StartWorker, database: db.Database[db.AsyncSession]
    ) -> None:
        """What follows the early commit in the block is rolled back with it."""
        async with db.scope():
            session = await db.session(database.sync)

            def act() -> None:
                with suppress(LookupError), session.begin():
                    write(session, "committed")
                    session.commit()
                    write(session, "rolled back")
                    raise LookupError

            await asyncio.to_thread(act)
        assert await run(start) == ["committed"]

    async def test_jobs_enqueued_before_a_refused_commit_in_a_savepoint_are_written_again(
        self, start: StartWorker, broker: Broker
    ) -> None:
        """What the refused COMMIT wrote in the savepoint is rolled back with it."""
        refused: list[int] = []

        async def refuse(_: db.AsyncSession) -> None:
            if not refused:
                refused.append(1)
                raise LookupError

        async with db.scope():
            await affect.enqueue("before")
            db.before_commit(refuse)
            with suppress(LookupError):
                async with (await db.session()).begin_nested():
                    await db.commit()
        await broker.redis.flushdb()  # so that only the row tells of the job
        assert await run(start) == ["before"]

    async def test_a_cancelled_savepoint_of_a_sync_session_drops_its_jobs_only_if_it_is_rolled_back(
        self, start: StartWorker, database: db.Database[db.AsyncSession]
    ) -> None:
        """The savepoint is released or rolled back, and its task ends accordingly."""
        async with db.scope():
            session = await db.session(database.sync)
            await asyncio.to_thread(write, session, "own")

            async def block() -> None:
                async with db.atomic("savepoint", database=database.sync):
                    await asyncio.to_thread(write, session, "block")
                    await affect.enqueue("block, job")
                    this = asyncio.current_task()
                    assert this is not None
                    this.cancel()

            running = asyncio.create_task(block())
            await asyncio.wait({running})
        assert await run(start) == (["own"] if running.cancelled() else ["block", "block, job", "own"])


class TestHandles:
    """The handle of a job that waits for a COMMIT."""

    @pytest.mark.parametrize("job_id", [None, "x"])
    async def test_waiting_for_or_aborting_a_job_before_its_scope_commits_is_an_error(
        self, start: StartWorker, job_id: str | None
    ) -> None:
        """The error says that the job does not exist yet."""
        async with start(affect, ledger=Ledger()):
            async with db.scope():
                job = await affect.using(job_id=job_id).enqueue("job")
                for ask in (job.result, job.abort):
                    with pytest.raises(JobNotCommittedError, match="does not exist before its scope has committed"):
                        await ask(timeout=20)
            assert await job.result(timeout=30) == "job"

    async def test_a_job_can_be_awaited_after_an_early_commit_of_its_scope(self, start: StartWorker) -> None:
        """The job exists, although its scope is open."""
        async with start(affect, ledger=Ledger()), db.scope():
            job = await affect.enqueue("job")
            await db.commit()
            assert await job.result(timeout=30) == "job"

    async def test_the_handle_of_a_rolled_back_job_says_that_it_was_never_committed(self) -> None:
        """The error gives the reason, and `abort` returns False."""
        with suppress(LookupError):
            async with db.scope():
                job = await affect.enqueue("job")
                raise LookupError
        with pytest.raises(ResultNotFoundError, match="the transaction that it was enqueued in was not committed"):
            await job.result(timeout=20)
        assert not await job.abort(timeout=20)

    async def test_waiting_in_a_scope_that_holds_sqlites_write_lock_raises_instead_of_blocking(
        self, database: db.Database[Any], broker: Broker
    ) -> None:
        """The result is in the ledger alone, which that scope has locked."""
        async with db.scope():
            job = await affect.enqueue("job")
        await broker.redis.flushdb()
        async with db.scope():
            await affect_here(await db.session(), "own")
            with pytest.raises(LedgerAwayError if database.is_sqlite else TimeoutError):
                await job.result(timeout=0.2)


class TestTransactionsOfTests:
    """`db.testing`: a job in a transaction that is never committed is never published."""

    async def test_a_job_enqueued_in_a_tests_savepoint_is_never_published(
        self, start: StartWorker, broker: Broker
    ) -> None:
        """A scope commits into the test's transaction: its callbacks run, its job has a row, Redis has no key."""
        told: list[str] = []
        async with savepoints():
            async with db.scope():
                jobs = [await affect.enqueue("job"), await affect.using(job_id="x").enqueue("named")]
                db.on_commit(lambda: told.append("committed"))
            async with db.scope():
                await affect_here(await db.session(), "own")
                jobs.append(await affect.enqueue("after a statement"))
            assert told == ["committed"]
            assert await broker.redis.keys() == []
            for job in jobs:
                assert await job.status() is JobStatus.queued
                with pytest.raises(JobNotCommittedError, match="part of another one, as in a test"):
                    await job.result(timeout=20)
            assert not (await again("x")).is_new
            assert await jobs[1].abort(timeout=5)
            with pytest.raises(asyncio.CancelledError):
                await jobs[1].result(timeout=20)
        assert [await job.status() for job in jobs] == [JobStatus.not_found] * 3
        assert await run(start) == []

    async def test_a_job_enqueued_in_a_tests_rolled_back_session_is_never_published(
        self, start: StartWorker, broker: Broker
    ) -> None:
        """The same for code that is given its session."""
        async with rolled_back() as session:
            async with db.scope(session=session):
                await affect.enqueue("job")
                await affect.using(job_id="x").enqueue("named")
                await session.commit()
            assert await broker.redis.keys() == []
        assert await run(start) == []

    async def test_a_job_enqueued_in_a_tests_savepoint_of_a_sync_driver_is_never_published(
        self, start: StartWorker, broker: Broker, database: db.Database[db.AsyncSession]
    ) -> None:
        """The same for a synchronous driver."""
        async with savepoints(database.sync):
            async with db.scope():
                await asyncio.to_thread(write, await db.session(database.sync), "own")
                await affect.enqueue("job")
            assert await broker.redis.keys() == []
        assert await run(start) == []

    async def test_a_job_on_a_bound_connection_is_published_once_that_is_committed(
        self, start: StartWorker, database: db.Database[Any]
    ) -> None:
        """A database bound to a connection enqueues into its transaction; the relay publishes the job."""
        session: db.AsyncSession
        async with db.independent(database) as session:
            connection = await session.connection()
            with database.bound_to(connection):
                async with db.scope():
                    await affect.enqueue("job")
            await session.commit()
        assert await run(start) == ["job"]


async def again(job_id: str) -> Job[str]:
    async with db.scope():
        return await affect.using(job_id=job_id).enqueue("again")


class TestIds:
    """Ids that the caller chooses."""

    async def test_the_id_of_an_aborted_job_can_be_enqueued_again_in_a_scope(self, start: StartWorker) -> None:
        """The new job runs, and the handle of the old one says that it was aborted."""
        async with start(affect, ledger=Ledger()):
            async with db.scope():
                old = await affect.using(job_id="x", delay=3600).enqueue("old")
            assert await old.abort(timeout=5)
            async with db.scope():
                fresh = await affect.using(job_id="x").enqueue("fresh")
            await fresh.result(timeout=30)
            with pytest.raises(asyncio.CancelledError):
                await old.result(timeout=30)
        assert await effects() == ["fresh"]

    async def test_jobs_of_one_id_are_separate_jobs_even_if_the_clock_stands_still(
        self, start: StartWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In a scope and outside of one."""
        moment = now_ms()
        monkeypatch.setattr("worker.client.enqueue_time.now_ms", lambda: moment)
        asked = affect.using(job_id="stands still")
        async with start(affect, ledger=Ledger(), keep_result=0) as one:
            for words in ("1", "2"):
                async with db.scope():
                    await asked.enqueue(words)
                await one.idle()
            await asked.enqueue("3")
            await one.idle()
        assert await effects() == ["1", "2", "3"]

    @pytest.mark.parametrize("published", [True, False])
    async def test_expires_counts_from_the_enqueue_of_a_job_that_was_due_before(
        self, start: StartWorker, broker: Broker, published: bool
    ) -> None:
        """The same whether its scope or the relay has published it."""
        an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
        async with db.scope():
            await affect.using(at=an_hour_ago, expires=60).enqueue("ran")
        if not published:
            await broker.redis.flushdb()
        assert await run(start) == ["ran"]


class TestSessions:
    async def test_a_job_enqueued_before_the_first_session_commits_with_that_session(
        self, start: StartWorker, database: db.Database[db.AsyncSession]
    ) -> None:
        """The same whichever driver the session has."""
        async with db.scope():
            await affect.enqueue("job")
            session = await db.session(database.sync)
            await asyncio.to_thread(write, session, "own")
            assert [unit.database for unit in current_scope().scoped_sessions] == [database.sync]
        assert await run(start) == ["job", "own"]

    async def test_enqueueing_in_a_session_without_an_owner_is_refused(self) -> None:
        """The job would never be published."""
        async with db.scope():
            engine = (await db.session()).bind
        async with db.AsyncSession(engine) as session, session.begin(), db.scope(session=session):
            with pytest.raises(db.UnownedSessionError):
                await affect.enqueue("job")

    async def test_a_rollback_through_run_sync_drops_the_jobs_enqueued_before_it(self, start: StartWorker) -> None:
        """Also before the first statement."""
        async with db.scope():
            session = await db.session()
            await affect.enqueue("rolled back")
            await session.run_sync(lambda inner: inner.rollback())
        assert await run(start) == []

    async def test_a_refused_rollback_drops_no_jobs(
        self, start: StartWorker, database: db.Database[db.AsyncSession]
    ) -> None:
        """It is refused because another thread uses the session."""
        async with db.scope():
            session = await db.session(database.sync)
            await asyncio.to_thread(write, session, "own")
            await affect.enqueue("job")
            taken, go_on = threading.Event(), threading.Event()

            def use() -> None:
                with session.access.operation():
                    taken.set()
                    go_on.wait(5)

            using = asyncio.create_task(asyncio.to_thread(use))
            await asyncio.to_thread(taken.wait, 5)
            with pytest.raises(db.ConcurrentUseError):
                await asyncio.to_thread(session.rollback)
            go_on.set()
            await using
        assert await run(start) == ["job", "own"]


async def test_an_abort_in_a_scope_that_holds_sqlites_write_lock_raises(
    broker: Broker, database: db.Database[db.AsyncSession]
) -> None:
    """The pending job cannot be kept from running there. After the scope, the abort works."""
    if not database.is_sqlite:
        return
    async with db.scope():
        await affect.using(job_id="a", delay=60).enqueue("job")
    await broker.redis.flushdb()
    async with db.scope():
        await affect_here(await db.session(), "own")
        with pytest.raises(LedgerAwayError, match="write lock"):
            await Job[str]("a").abort(timeout=1)
    assert await Job[str]("a").abort(timeout=1)

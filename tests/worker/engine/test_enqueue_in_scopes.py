"""Jobs that are enqueued in a scope share its fate, whatever else is done to its sessions; on both databases."""

import asyncio
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

import db
from db.guarded import commit_here
from db.scope import current_scope
from db.testing import rolled_back, savepoints
from tests.worker.engine.conftest import StartWorker
from tests.worker.engine.test_either_database import affect, affect_here, database, effects
from worker import Job, JobStatus, Queue, Task, task
from worker.errors import JobNotCommittedError, LedgerAwayError, ResultNotFoundError
from worker.exchange import now_ms
from worker.ledger import Ledger

__all__ = ["database"]  # a fixture

pytestmark = pytest.mark.usefixtures("database", "queue")


async def run(start: StartWorker, *more: "Task[..., None]") -> list[str]:
    """What is there once all jobs have run."""
    async with start(affect, *more, ledger=Ledger()) as one:
        await one.idle()
    return await effects()


def write(session: db.Session, words: str) -> None:
    session.execute(text("INSERT INTO effect (words) VALUES (:words)"), {"words": words})


class TestWhileACommitIsInFlight:
    """What is enqueued then belongs to the next COMMIT."""

    async def test_that_is_rolled_back(self, start: StartWorker) -> None:
        """It never happens, and nobody is told of it."""
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

    async def test_that_is_committed(self, start: StartWorker) -> None:
        """It is published then, with its row, and not before."""
        async with start(affect, ledger=Ledger()) as one:
            async with db.scope():
                session = await db.session()
                await affect_here(session, "own")
                _, job = await asyncio.gather(session.commit(), affect.enqueue("job"))
                assert (await one.queue.depth(one.queue.name), await job.info()) == (0, None)
            await one.idle()
        assert await effects() == ["job", "own"]

    async def test_in_a_thread(
        self, start: StartWorker, database: db.Database[db.AsyncSession], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Likewise."""
        loop = asyncio.get_running_loop()
        committing, go_on = asyncio.Event(), threading.Event()

        def slowly(session: db.Session) -> None:
            loop.call_soon_threadsafe(committing.set)
            go_on.wait(5)
            commit_here(session)

        monkeypatch.setattr("db.unit.commit_here", slowly)
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
    """A block that fails takes along what was enqueued in it, and nothing else."""

    async def test_begin(self, start: StartWorker) -> None:
        """Of an AsyncSession, before its first statement."""
        async with db.scope():
            session = await db.session()
            await affect.enqueue("before")
            with suppress(LookupError):
                async with session.begin():
                    await affect.enqueue("in it")
                    raise LookupError
        assert await run(start) == ["before"]

    async def test_begin_after_a_commit(self, start: StartWorker) -> None:
        """What was committed inside the block is not done again."""
        async with db.scope():
            session = await db.session()
            await affect.enqueue("before")
            with suppress(LookupError):
                async with session.begin():
                    await db.commit()
                    await affect.enqueue("in it")
                    raise LookupError
        assert await run(start) == ["before"]

    async def test_begin_in_a_plain_task(self, start: StartWorker) -> None:
        """Of a Session."""

        @task
        def plain(session: db.Session, words: str) -> None:
            asyncio.run(affect.enqueue(f"{words}, child"))
            with suppress(LookupError), session.begin():
                write(session, f"{words}, lost")
                raise LookupError

        async with db.scope():
            await plain.enqueue("good")
        assert await run(start, plain) == ["good, child"]

    async def test_begin_of_a_session_after_a_commit(
        self, start: StartWorker, database: db.Database[db.AsyncSession]
    ) -> None:
        """What follows an early commit in it is rolled back with it."""
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

    async def test_a_refused_commit_in_a_savepoint(self, start: StartWorker, queue: Queue) -> None:
        """What the attempt has written in the savepoint goes with that, and is written again."""
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
        await queue.redis.flushdb()  # so that only the row tells of the job
        assert await run(start) == ["before"]

    async def test_a_cancelled_savepoint_of_a_session(
        self, start: StartWorker, database: db.Database[db.AsyncSession]
    ) -> None:
        """It is released, or rolled back, and says which."""
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
    """Of a job that waits for a COMMIT."""

    @pytest.mark.parametrize("job_id", [None, "x"])
    async def test_in_the_scope(self, start: StartWorker, job_id: str | None) -> None:
        """Whoever waits for the job, or aborts it, hears that it does not exist yet."""
        async with start(affect, ledger=Ledger()):
            async with db.scope():
                job = await affect.using(job_id=job_id).enqueue("job")
                for ask in (job.result, job.abort):
                    with pytest.raises(JobNotCommittedError, match="exists once its scope has committed"):
                        await ask(timeout=20)
            assert await job.result(timeout=30) == "job"

    async def test_after_an_early_commit(self, start: StartWorker) -> None:
        """The job exists, though its scope is open."""
        async with start(affect, ledger=Ledger()), db.scope():
            job = await affect.enqueue("job")
            await db.commit()
            assert await job.result(timeout=30) == "job"

    async def test_after_a_rollback(self) -> None:
        """There never was such a job, and the error says why."""
        with suppress(LookupError):
            async with db.scope():
                job = await affect.enqueue("job")
                raise LookupError
        with pytest.raises(ResultNotFoundError, match="the transaction that it was enqueued in was not committed"):
            await job.result(timeout=20)
        assert not await job.abort(timeout=20)

    async def test_that_would_wait_for_its_own_scope(self, database: db.Database[Any], queue: Queue) -> None:
        """A scope that holds SQLite's write lock cannot wait for what only the ledger knows: it is told so."""
        async with db.scope():
            job = await affect.enqueue("job")
        await queue.redis.flushdb()
        async with db.scope():
            await affect_here(await db.session(), "own")
            with pytest.raises(LedgerAwayError if database.is_sqlite else TimeoutError):
                await job.result(timeout=0.2)


class TestTransactionsOfTests:
    """`db.testing`: what is never committed is never published, and no worker runs it."""

    async def test_savepoints(self, start: StartWorker, queue: Queue) -> None:
        """A scope commits into the test's transaction: its callbacks run, its job's row is there, Redis has no key."""
        told: list[str] = []
        async with savepoints():
            async with db.scope():
                jobs = [await affect.enqueue("job"), await affect.using(job_id="x").enqueue("named")]
                db.on_commit(lambda: told.append("committed"))
            async with db.scope():
                await affect_here(await db.session(), "own")
                jobs.append(await affect.enqueue("after a statement"))
            assert told == ["committed"]
            assert await queue.redis.keys() == []
            for job in jobs:
                assert await job.status() is JobStatus.queued
                with pytest.raises(JobNotCommittedError, match="part of another one, a test's say"):
                    await job.result(timeout=20)
            assert not (await again("x")).is_new
            assert await jobs[1].abort(timeout=5)
            with pytest.raises(asyncio.CancelledError):
                await jobs[1].result(timeout=20)
        assert [await job.status() for job in jobs] == [JobStatus.not_found] * 3
        assert await run(start) == []

    async def test_a_session_that_is_rolled_back(self, start: StartWorker, queue: Queue) -> None:
        """The same for code that is given its session."""
        async with rolled_back() as session:
            async with db.scope(session=session):
                await affect.enqueue("job")
                await affect.using(job_id="x").enqueue("named")
                await session.commit()
            assert await queue.redis.keys() == []
        assert await run(start) == []

    async def test_the_synchronous_driver(
        self, start: StartWorker, queue: Queue, database: db.Database[db.AsyncSession]
    ) -> None:
        """Likewise."""
        async with savepoints(database.sync):
            async with db.scope():
                await asyncio.to_thread(write, await db.session(database.sync), "own")
                await affect.enqueue("job")
            assert await queue.redis.keys() == []
        assert await run(start) == []

    async def test_that_is_committed_after_all(self, start: StartWorker, database: db.Database[Any]) -> None:
        """Whoever binds a database to a connection may commit that: then the relay publishes its jobs."""
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
    """Of callers' own."""

    async def test_after_an_abort(self, start: StartWorker) -> None:
        """The id is free, in a scope too."""
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

    async def test_at_a_clock_that_stands_still(self, start: StartWorker, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two jobs of one id are two, whichever way they are enqueued."""
        moment = now_ms()
        monkeypatch.setattr("worker.enqueue_time.now_ms", lambda: moment)
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
    async def test_due_before_and_expiring(self, start: StartWorker, queue: Queue, published: bool) -> None:
        """How long a job may wait counts from its enqueueing, whether Redis has it from its scope or from the relay."""
        an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
        async with db.scope():
            await affect.using(at=an_hour_ago, expires=60).enqueue("ran")
        if not published:
            await queue.redis.flushdb()
        assert await run(start) == ["ran"]


class TestSessions:
    async def test_of_the_other_driver(self, start: StartWorker, database: db.Database[db.AsyncSession]) -> None:
        """A job enqueued before the scope's first session goes with that one's transaction, whichever driver it has."""
        async with db.scope():
            await affect.enqueue("job")
            session = await db.session(database.sync)
            await asyncio.to_thread(write, session, "own")
            assert [unit.database for unit in current_scope().units] == [database.sync]
        assert await run(start) == ["job", "own"]

    async def test_that_nobody_owns(self) -> None:
        """Nobody would publish the job: it is refused."""
        async with db.scope():
            engine = (await db.session()).bind
        async with db.AsyncSession(engine) as session, session.begin(), db.scope(session=session):
            with pytest.raises(db.UnownedSessionError):
                await affect.enqueue("job")

    async def test_rolled_back_by_run_sync(self, start: StartWorker) -> None:
        """As by any other rollback, also before the first statement."""
        async with db.scope():
            session = await db.session()
            await affect.enqueue("rolled back")
            await session.run_sync(lambda inner: inner.rollback())
        assert await run(start) == []

    async def test_a_rollback_that_is_refused(self, start: StartWorker, database: db.Database[db.AsyncSession]) -> None:
        """It has done nothing."""
        async with db.scope():
            session = await db.session(database.sync)
            await asyncio.to_thread(write, session, "own")
            await affect.enqueue("job")
            taken, go_on = threading.Event(), threading.Event()

            def use() -> None:
                with session.use.operation():
                    taken.set()
                    go_on.wait(5)

            using = asyncio.create_task(asyncio.to_thread(use))
            await asyncio.to_thread(taken.wait, 5)
            with pytest.raises(db.ConcurrentUseError):
                await asyncio.to_thread(session.rollback)
            go_on.set()
            await using
        assert await run(start) == ["job", "own"]


async def test_an_abort_where_the_ledger_cannot_be_asked(queue: Queue, database: db.Database[db.AsyncSession]) -> None:
    """In a scope that holds SQLite's write lock nobody can keep a pending job from running, and nobody claims to."""
    if not database.is_sqlite:
        return
    async with db.scope():
        await affect.using(job_id="a", delay=60).enqueue("job")
    await queue.redis.flushdb()
    async with db.scope():
        await affect_here(await db.session(), "own")
        with pytest.raises(LedgerAwayError, match="write lock"):
            await Job[str]("a").abort(timeout=1)
    assert await Job[str]("a").abort(timeout=1)

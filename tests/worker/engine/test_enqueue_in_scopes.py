"""Jobs that are enqueued in a scope share its fate, whatever else is done to its sessions; on both databases."""

import asyncio
import threading
from contextlib import suppress

import pytest
from sqlalchemy import text

import db
from db.guarded import commit_here
from db.scope import current_scope
from tests.worker.engine.conftest import StartWorker
from tests.worker.engine.test_either_database import affect, affect_here, database, effects
from worker import Job, Queue, Task, task
from worker.errors import LedgerAwayError
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

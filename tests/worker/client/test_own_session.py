"""Jobs enqueued in a session of the caller's own exist if and only if its transaction commits. No scope is open."""

import asyncio
import contextlib
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.pool import NullPool

import db
from db.errors import PoisonedTransactionError
from tests.proxy import Proxy
from tests.servers import Observer
from tests.waiting import at_once
from worker import Broker, set_default_broker, task
from worker.errors import EnqueueError, JobNotCommittedError, LedgerError


@task
async def ship(order_id: int) -> int:
    return order_id


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(database_url)
    yield engine
    await engine.dispose()


@pytest.fixture
def sessions(engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
    return async_sessionmaker(engine)


@pytest.fixture
def sync_engine(sync_database_url: str) -> Iterator[Engine]:
    engine = create_engine(sync_database_url)
    yield engine
    engine.dispose()


class Jobs:
    """The jobs that exist, in both places."""

    def __init__(self, observer: redis.Redis, postgres: Observer) -> None:
        self._observer = observer
        self._postgres = postgres

    async def ids(self) -> set[str]:
        """The ids, which the ledger and Redis must agree on."""
        rows = {row["id"] for row in await self._postgres.fetch("SELECT id FROM tandem_jobs WHERE state = 'pending'")}
        published: Any = self._observer.zrange("arq:queue", 0, -1)
        assert set(published) == rows
        return rows


@pytest.fixture
def jobs(broker: Broker, observer: redis.Redis, postgres: Observer) -> Jobs:
    return Jobs(observer, postgres)


class TestAsyncSessions:
    async def test_a_job_is_published_when_the_commit_returns_and_not_before(
        self, sessions: async_sessionmaker[AsyncSession], jobs: Jobs
    ) -> None:
        """Before the commit the job's handle says so; after it, Redis and the ledger have the job."""
        async with sessions() as session:
            job = await ship.using(session=session).enqueue(7)
            assert await jobs.ids() == set()
            with pytest.raises(JobNotCommittedError, match="before its session has committed"):
                await job.result(timeout=1)
            await session.commit()
            assert await jobs.ids() == {job.job_id}
        assert await job.status() == "queued"

    @pytest.mark.parametrize("end", ["rollback", "close", "invalidate", "forget"])
    async def test_a_session_that_does_not_commit_leaves_nothing(
        self, engine: AsyncEngine, sessions: async_sessionmaker[AsyncSession], jobs: Jobs, end: str
    ) -> None:
        """Whether it is rolled back, closed, invalidated or just dropped."""
        session = sessions()
        await ship.using(session=session).enqueue(7)
        await ship.using(session=session, job_id="named").enqueue(7)
        if end == "forget":
            del session
            with pytest.warns(Warning, match="garbage collector"):
                gc.collect()
        else:
            await getattr(session, end)()
            await session.commit()
            await session.close()
        await engine.dispose()
        assert await jobs.ids() == set()

    async def test_a_begin_block_commits_its_jobs_at_its_end(
        self, sessions: async_sessionmaker[AsyncSession], jobs: Jobs
    ) -> None:
        """`sessions.begin()` and `session.begin()`; an exception in the block leaves no job."""
        async with sessions.begin() as session:
            first = await ship.using(session=session).enqueue(1)
        async with sessions() as session, session.begin():
            second = await ship.using(session=session).enqueue(2)
        with pytest.raises(LookupError):
            async with sessions.begin() as session:
                await ship.using(session=session).enqueue(3)
                raise LookupError
        assert await jobs.ids() == {first.job_id, second.job_id}

    async def test_jobs_of_a_rolled_back_savepoint_go_with_it(
        self, sessions: async_sessionmaker[AsyncSession], jobs: Jobs
    ) -> None:
        """Also those of a released savepoint inside, and of a savepoint in raw SQL; the others stay."""
        async with sessions() as session:
            kept = [await ship.using(session=session).enqueue(1)]
            with contextlib.suppress(LookupError):
                async with session.begin_nested():
                    lost = await ship.using(session=session).enqueue(2)
                    async with session.begin_nested():
                        await ship.using(session=session).enqueue(3)
                    raise LookupError
            async with session.begin_nested():
                kept.append(await ship.using(session=session).enqueue(4))
            await session.execute(text("SAVEPOINT raw"))
            await ship.using(session=session).enqueue(5)
            await session.execute(text("ROLLBACK TO SAVEPOINT raw"))
            kept.append(await ship.using(session=session).enqueue(6))
            await session.commit()
        assert await jobs.ids() == {job.job_id for job in kept}
        assert await lost.status() == "not_found"

    async def test_each_commit_of_a_session_publishes_its_own_jobs(
        self, sessions: async_sessionmaker[AsyncSession], jobs: Jobs
    ) -> None:
        """A rollback between two commits takes only what was enqueued since the first."""
        async with sessions() as session:
            first = await ship.using(session=session).enqueue(1)
            await session.commit()
            assert await jobs.ids() == {first.job_id}
            await ship.using(session=session).enqueue(2)
            await session.rollback()
            third = await ship.using(session=session).enqueue(3)
            await session.commit()
        assert await jobs.ids() == {first.job_id, third.job_id}

    async def test_many_jobs_and_a_scoped_session_are_one_transaction(
        self, sessions: async_sessionmaker[AsyncSession], jobs: Jobs
    ) -> None:
        """`enqueue_many` with more jobs than one statement reads, through an `async_scoped_session`."""
        scoped = async_scoped_session(sessions, scopefunc=asyncio.current_task)
        many = await ship.using(session=scoped).enqueue_many([{"order_id": number} for number in range(2500)])
        assert await ship.using(session=scoped).enqueue_many([]) == []
        await scoped.commit()
        await scoped.remove()
        assert await jobs.ids() == {job.job_id for job in many}

    async def test_an_id_that_is_taken_is_not_taken_again(
        self, sessions: async_sessionmaker[AsyncSession], jobs: Jobs
    ) -> None:
        """Neither in the same transaction nor after its commit; after a rollback the id is free."""
        named = ship.using(job_id="ship-7")
        async with sessions() as session:
            assert (await ship.using(session=session, job_id="ship-7").enqueue(7)).is_new
            assert not (await ship.using(session=session, job_id="ship-7").enqueue(7)).is_new
            await session.rollback()
            assert (await ship.using(session=session, job_id="ship-7").enqueue(7)).is_new
            await session.commit()
            assert not (await ship.using(session=session, job_id="ship-7").enqueue(7)).is_new
        assert not (await named.enqueue(7)).is_new
        assert await jobs.ids() == {"ship-7"}

    async def test_a_session_in_an_open_scope_is_still_its_own(
        self, sessions: async_sessionmaker[AsyncSession], jobs: Jobs, database_url: str
    ) -> None:
        """The scope rolls back, and the session's job stays. A scope's own session can be given, too."""
        database = db.Database(database_url, default=True)
        with contextlib.suppress(LookupError):
            async with db.scope(), sessions() as session:
                job = await ship.using(session=session).enqueue(7)
                await ship.using(session=await db.session()).enqueue(8)
                await session.commit()
                raise LookupError
        async with db.scope():
            own = await ship.using(session=await db.session()).enqueue(9)
        db.set_default_database(None)
        await database.dispose()
        assert await jobs.ids() == {job.job_id, own.job_id}

    async def test_jobs_in_a_scope_follow_the_session_that_it_was_lent(
        self, sessions: async_sessionmaker[AsyncSession], database_url: str, jobs: Jobs
    ) -> None:
        """One of SQLAlchemy's own: a plain `enqueue` is part of its transaction, as with `using(session=...)`."""
        database = db.Database(database_url, default=True)
        async with sessions() as session:
            async with db.scope(session=session):
                kept = [await ship.enqueue(1), await ship.using(session=session).enqueue(2)]
                async with session.begin_nested() as savepoint:
                    await ship.enqueue(3)
                    await savepoint.rollback()
                kept.append(await asyncio.to_thread(ship.using(job_id="named").enqueue_sync, 4))
                with pytest.raises(JobNotCommittedError, match="commit the session first"):
                    await kept[0].result()
                isolated = await db.isolated(ship.enqueue, 5)
                assert await jobs.ids() == {isolated.job_id}
            kept.append(isolated)
            await session.commit()
            assert await jobs.ids() == {job.job_id for job in kept}
            async with db.scope(session=session):
                kept.append(await ship.enqueue(6))
                await db.commit()
                assert await jobs.ids() == {job.job_id for job in kept}
                await ship.enqueue(7)
                await db.rollback()
                await ship.enqueue(8)
                await db.close()
                await ship.enqueue(9)
        assert await jobs.ids() == {job.job_id for job in kept}
        db.set_default_database(None)
        await database.dispose()

    async def test_a_session_of_psycopg_is_as_good(self, sync_database_url: str, jobs: Jobs) -> None:
        """Its savepoints too, and an id of the caller's."""
        engine = create_async_engine(sync_database_url.replace("+psycopg", "+psycopg_async"))
        async with AsyncSession(engine) as session, session.begin():
            async with session.begin_nested() as savepoint:
                await ship.using(session=session).enqueue(1)
                await savepoint.rollback()
            await ship.using(session=session, job_id="named").enqueue(2)
        assert await jobs.ids() == {"named"}
        await engine.dispose()

    async def test_a_session_of_another_threads_loop_publishes_there(
        self, database_url: str, sessions: async_sessionmaker[AsyncSession], jobs: Jobs
    ) -> None:
        """The broker was used on this loop before; the session belongs to a loop in a thread."""
        async with sessions() as session:
            here = await ship.using(session=session).enqueue(1)
            await session.commit()

        async def enqueue() -> str:
            engine = create_async_engine(database_url, poolclass=NullPool)
            async with AsyncSession(engine) as session:
                job = await ship.using(session=session).enqueue(2)
                await session.commit()
            return job.job_id

        there = await asyncio.to_thread(lambda: asyncio.run(enqueue()))
        assert await jobs.ids() == {here.job_id, there}


class TestConnections:
    async def test_a_job_in_an_async_connection_follows_its_transaction(self, engine: AsyncEngine, jobs: Jobs) -> None:
        """`engine.begin()`, autobegin with `commit()`, and savepoints."""
        async with engine.begin() as connection:
            first = await ship.using(session=connection).enqueue(1)
            savepoint = await connection.begin_nested()
            await ship.using(session=connection).enqueue(2)
            await savepoint.rollback()
        async with engine.connect() as connection:
            second = await ship.using(session=connection).enqueue(3)
            await connection.commit()
            assert await jobs.ids() == {first.job_id, second.job_id}
            await ship.using(session=connection).enqueue(4)
            await connection.rollback()
            await ship.using(session=connection).enqueue(5)
        with contextlib.suppress(LookupError):
            async with engine.begin() as connection:
                await ship.using(session=connection).enqueue(6)
                raise LookupError
        assert await jobs.ids() == {first.job_id, second.job_id}

    async def test_a_session_inside_a_connections_transaction_publishes_when_that_one_commits(
        self, engine: AsyncEngine, jobs: Jobs
    ) -> None:
        """As in the tests of many projects: the session's commit is a savepoint's, and nothing leaves the test."""
        async with engine.connect() as connection:
            outer = await connection.begin()
            async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
                job = await ship.using(session=session).enqueue(1)
                await session.commit()
                with pytest.raises(JobNotCommittedError):
                    await job.result(timeout=1)
                await ship.using(session=session).enqueue(2)
                await session.rollback()
            assert await jobs.ids() == set()
            await outer.commit()
        assert await jobs.ids() == {job.job_id}
        async with engine.connect() as connection:
            outer = await connection.begin()
            async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
                await ship.using(session=session).enqueue(3)
                await session.commit()
            await outer.rollback()
        assert await jobs.ids() == {job.job_id}


class TestSyncSessions:
    async def test_a_sync_session_enqueues_in_a_thread_without_a_loop(self, sync_engine: Engine, jobs: Jobs) -> None:
        """`Session`, `scoped_session` and `Connection`: committed ones are published before `commit` returns."""

        def work() -> set[str]:
            with Session(sync_engine) as session:
                first = ship.using(session=session).enqueue_sync(1)
                with contextlib.suppress(LookupError), session.begin_nested():
                    ship.using(session=session).enqueue_sync(2)
                    raise LookupError
                session.commit()
                ship.using(session=session).enqueue_sync(3)
            scoped = scoped_session(sessionmaker(sync_engine))
            second = ship.using(session=scoped, job_id="named").enqueue_sync(4)
            scoped.commit()
            scoped.remove()
            with sync_engine.begin() as connection:
                third = ship.using(session=connection).enqueue_sync(5)
            return {first.job_id, second.job_id, third.job_id}

        made: set[str] = set()
        thread = threading.Thread(target=lambda: made.update(work()))
        thread.start()
        await asyncio.to_thread(thread.join)
        assert len(made) == 3
        assert await jobs.ids() == made

    async def test_jobs_in_a_scope_follow_the_sync_session_that_it_was_lent(
        self, sync_engine: Engine, sync_database_url: str, jobs: Jobs
    ) -> None:
        """With a default database of the same driver."""
        database = db.Database(sync_database_url, default=True)
        with Session(sync_engine) as session:
            async with db.scope(session=session):
                job = await ship.enqueue(1)
            assert await jobs.ids() == set()
            await asyncio.to_thread(session.commit)
            assert await jobs.ids() == {job.job_id}
            async with db.scope(session=session):
                await ship.enqueue(2)
        assert await jobs.ids() == {job.job_id}
        db.set_default_database(None)
        await database.dispose()

    async def test_a_sync_session_can_be_awaited_with_on_a_loop(self, sync_engine: Engine, jobs: Jobs) -> None:
        """An `async def` endpoint with a blocking session."""
        with Session(sync_engine) as session:
            job = await ship.using(session=session, job_id="named").enqueue(1)
            session.commit()
        assert await jobs.ids() == {job.job_id}

    async def test_enqueue_sync_works_inside_run_sync(
        self, sessions: async_sessionmaker[AsyncSession], jobs: Jobs
    ) -> None:
        """The synchronous session inside an `AsyncSession`, where a loop runs; a call of `enqueue` takes it, too."""
        async with sessions() as session:
            job = await session.run_sync(lambda inner: ship.using(session=inner, job_id="named").enqueue_sync(1))
            other = await ship.using(session=session.sync_session).enqueue(2)
            await session.commit()
        assert await jobs.ids() == {job.job_id, other.job_id}

    async def test_a_listener_enqueues_in_the_commit_that_it_listens_to(self, sync_engine: Engine, jobs: Jobs) -> None:
        """`before_commit` of SQLAlchemy's, for example in a library that knows each session of a project."""
        enqueued: list[str] = []

        def work() -> None:
            with Session(sync_engine) as session:

                @event.listens_for(session, "before_commit")
                def _(committed: Session) -> None:
                    enqueued.append(ship.using(session=committed).enqueue_sync(1).job_id)

                session.execute(text("SELECT 1"))
                session.commit()
                session.execute(text("SELECT 1"))

        await asyncio.to_thread(work)
        assert len(enqueued) == 1
        assert await jobs.ids() == set(enqueued)

    @pytest.mark.usefixtures("broker")
    async def test_a_session_of_sqlite_is_as_good(self, sqlite_url: str, observer: redis.Redis) -> None:
        """A rolled-back job is nowhere; a committed one has its row and is published."""
        engine = create_async_engine(sqlite_url)
        async with AsyncSession(engine) as session:
            await ship.using(session=session).enqueue(1)
            await session.rollback()
            job = await ship.using(session=session).enqueue(2)
            await session.commit()
            ids = (await session.scalars(text("SELECT id FROM tandem_jobs"))).all()
        await engine.dispose()
        published: Any = observer.zrange("arq:queue", 0, -1)
        assert ids == published == [job.job_id]


class TestFaults:
    async def test_a_commit_of_an_aborted_transaction_is_an_error_and_leaves_no_job(
        self, sessions: async_sessionmaker[AsyncSession], jobs: Jobs
    ) -> None:
        """PostgreSQL would answer the COMMIT with a ROLLBACK, and SQLAlchemy would not tell."""
        async with sessions() as session:
            await ship.using(session=session).enqueue(1)
            with contextlib.suppress(DBAPIError):
                await session.execute(text("SELECT 1 / 0"))
            with pytest.raises(PoisonedTransactionError):
                await session.commit()
        assert await jobs.ids() == set()

    async def test_a_commit_that_fails_leaves_no_job(
        self, sessions: async_sessionmaker[AsyncSession], jobs: Jobs, postgres: Observer
    ) -> None:
        """A constraint is checked at COMMIT. The session works on."""
        await postgres.execute("CREATE TABLE note (id int PRIMARY KEY)")
        await postgres.execute("CREATE TABLE reply (note int REFERENCES note DEFERRABLE INITIALLY DEFERRED)")
        async with sessions() as session:
            await session.execute(text("INSERT INTO reply VALUES (404)"))
            job = await ship.using(session=session).enqueue(1)
            with pytest.raises(DBAPIError):
                await session.commit()
            await session.rollback()
            assert not await job.abort(timeout=1)
            kept = await ship.using(session=session).enqueue(2)
            await session.commit()
        assert await jobs.ids() == {kept.job_id}

    async def test_a_broker_that_is_away_at_the_commit_costs_no_error(
        self,
        sessions: async_sessionmaker[AsyncSession],
        redis_url: str,
        postgres: Observer,
        observer: redis.Redis,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """The row is pending, which the relay publishes. A Redis that takes no bytes is not waited for for long."""
        async with Proxy(redis_url) as proxy:
            proxy.blackhole()
            broker = Broker(proxy.url, default=True)
            async with sessions() as session:
                job = await ship.using(session=session).enqueue(1)
                await at_once(session.commit())
            await broker.close()
            set_default_broker(None)
        assert await postgres.fetchval("SELECT id FROM tandem_jobs WHERE state = 'pending'") == job.job_id
        assert observer.keys("*") == []
        assert "Redis did not take 1 committed job, which the relay will publish" in caplog.text

    async def test_a_cancellation_during_the_publish_is_delivered_after_it(
        self, sessions: async_sessionmaker[AsyncSession], jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The job is committed, so it is published."""
        publishing, go_on = asyncio.Event(), asyncio.Event()
        publish = Broker.publish

        async def slowly(broker: Broker, new: Any) -> list[bool]:
            publishing.set()
            await go_on.wait()
            return await publish(broker, new)

        monkeypatch.setattr(Broker, "publish", slowly)

        async def work() -> None:
            async with sessions() as session:
                await ship.using(session=session, job_id="named").enqueue(1)
                await session.commit()
                await asyncio.sleep(60)

        working = asyncio.create_task(work())
        await at_once(publishing.wait())
        working.cancel()
        await asyncio.sleep(0)
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await at_once(working)
        assert await jobs.ids() == {"named"}

    async def test_a_raw_commit_publishes_at_the_sessions_own_commit(self, sync_engine: Engine, jobs: Jobs) -> None:
        """The rows were written at once, so a COMMIT behind SQLAlchemy's back saves them."""
        with Session(sync_engine) as session:
            job = await ship.using(session=session).enqueue(1)
            session.execute(text("COMMIT"))
            session.commit()
            await ship.using(session=session).enqueue(2)
            session.execute(text("ROLLBACK"))
            session.commit()
        assert await jobs.ids() == {job.job_id}

    @pytest.mark.usefixtures("broker")
    async def test_connections_are_not_kept_alive(self, sync_engine: Engine) -> None:
        """What watches a transaction holds no reference to its connection."""
        connection = sync_engine.connect()
        await ship.using(session=connection).enqueue(1)
        connection.commit()
        await ship.using(session=connection).enqueue(2)
        connection.close()
        watched = weakref.ref(connection)
        del connection
        gc.collect()
        assert watched() is None


class TestRefusals:
    async def test_something_that_is_no_session_is_a_type_error(
        self, sessions: async_sessionmaker[AsyncSession]
    ) -> None:
        """A sessionmaker, for example; and a session with transactional=False contradicts itself."""
        with pytest.raises(TypeError, match="give a session or a connection of SQLAlchemy"):
            ship.using(session=sessions)  # type: ignore[arg-type]  # the case under test
        async with sessions() as session:
            with pytest.raises(ValueError, match="leave out session or transactional=False"):
                ship.using(session=session, transactional=False)

    @pytest.mark.usefixtures("broker")
    async def test_an_async_session_in_enqueue_sync_is_an_error(
        self, sessions: async_sessionmaker[AsyncSession]
    ) -> None:
        """The error names what to do."""
        async with sessions() as session:
            with pytest.raises(EnqueueError, match="cannot wait for an AsyncSession: write 'await"):
                ship.using(session=session).enqueue_sync(1)

    async def test_a_session_without_transactions_is_an_error(self, database_url: str, jobs: Jobs) -> None:
        """In AUTOCOMMIT, of the engine or of the connection, a rollback would keep the job."""
        engine = create_async_engine(database_url, isolation_level="AUTOCOMMIT")
        async with AsyncSession(engine) as session:
            with pytest.raises(EnqueueError, match="AUTOCOMMIT"):
                await ship.using(session=session).enqueue(1)
        await engine.dispose()
        engine = create_async_engine(database_url)
        async with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            with pytest.raises(EnqueueError, match="AUTOCOMMIT"):
                await ship.using(session=connection).enqueue(1)
        await engine.dispose()
        assert await jobs.ids() == set()

    async def test_a_two_phase_session_is_an_error(self, sync_engine: Engine, jobs: Jobs) -> None:
        """Its COMMIT has two halves, and another process may send the second."""
        with Session(sync_engine, twophase=True) as session, pytest.raises(EnqueueError, match="two phases"):
            ship.using(session=session).enqueue_sync(1)
        assert await jobs.ids() == set()

    @pytest.mark.usefixtures("broker")
    async def test_a_database_without_the_ledger_is_an_error(self, tmp_path: Path) -> None:
        """The error says what to run."""
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'bare.sqlite'}")
        async with AsyncSession(engine) as session:
            with pytest.raises(LedgerError, match="run 'python -m worker migrate'"):
                await ship.using(session=session).enqueue(1)
        await engine.dispose()


class TestRequireScope:
    """`WORKER_REQUIRE_SCOPE`."""

    async def test_enqueueing_outside_of_scopes_and_sessions_is_an_error_if_a_scope_is_required(
        self,
        sessions: async_sessionmaker[AsyncSession],
        jobs: Jobs,
        observer: redis.Redis,
        database_url: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Every way of enqueueing. Sessions, scopes and transactional=False go on."""
        monkeypatch.setenv("WORKER_REQUIRE_SCOPE", "true")
        for enqueue in (
            ship.enqueue(1),
            ship.using(delay=1).enqueue(1),
            ship.enqueue_many([{"order_id": 1}]),
            asyncio.to_thread(ship.enqueue_sync, 1),
        ):
            with pytest.raises(EnqueueError, match="ship: WORKER_REQUIRE_SCOPE is set, and no scope is open here"):
                await enqueue
        async with sessions() as session:
            kept = {(await ship.using(session=session).enqueue(1)).job_id}
            await session.commit()
        database = db.Database(database_url, default=True)
        async with db.scope():
            kept.add((await ship.enqueue(2)).job_id)
        db.set_default_database(None)
        await database.dispose()
        assert await jobs.ids() == kept
        loose = await ship.using(transactional=False).enqueue(3)
        monkeypatch.setenv("WORKER_REQUIRE_SCOPE", "false")
        loose_too = await ship.enqueue(4)
        published: Any = observer.zrange("arq:queue", 0, -1)
        assert set(published) == kept | {loose.job_id, loose_too.job_id}

"""Synchronous sessions: psycopg, used through `asyncio.to_thread`; commit, rollback and close off the event loop."""

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, make_url, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError

import db
from db.transient import Transient, transient
from tests.commits import held_commits
from tests.db.conftest import INSERT, Count
from tests.db.models import Note
from tests.proxy import Proxy
from tests.servers import Observer
from tests.stopwatch import Stopwatch
from tests.waiting import AT_ONCE, eventually

SLEEP = text("SELECT pg_sleep(30)")
SyncDatabase = db.Database[db.Session]


def write(session: db.Session, words: str = "a") -> None:
    """A plain function: what runs in the thread."""
    session.execute(INSERT, {"words": words})


async def test_scope_commits_a_sync_session(sync_database: SyncDatabase, rows: Count, postgres: Observer) -> None:
    """A scope gives a `Session`, the same at every call; it is committed at the end, and leaves no transaction."""
    async with db.scope():
        session = await db.session(sync_database)
        assert isinstance(session, db.Session)
        assert await db.session(sync_database) is session
        await asyncio.to_thread(write, session)
        assert await rows() == 0
    assert await rows() == 1
    assert await postgres.idle_in_transaction() == 0


async def test_scope_rolls_a_sync_session_back(sync_database: SyncDatabase, rows: Count, postgres: Observer) -> None:
    """An exception, in the thread or out of it, rolls back."""

    def fail(session: db.Session) -> None:
        write(session)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        async with db.scope():
            await asyncio.to_thread(fail, await db.session(sync_database))
    assert await rows() == 0
    assert await postgres.idle_in_transaction() == 0


async def test_ending_a_sync_session_does_not_block_the_loop(
    sync_database: SyncDatabase, postgres: Observer, rows: Count
) -> None:
    """COMMIT, ROLLBACK and close run in worker threads: the loop turns while a COMMIT takes its time."""
    threads: set[int] = set()

    async def work() -> None:
        async with db.scope():
            session = await db.session(sync_database)
            event.listen(session, "after_commit", lambda _: threads.add(threading.get_ident()))
            await asyncio.to_thread(write, session)

    async with held_commits(postgres, "note") as commits:
        working = asyncio.create_task(work())
        await commits.begun()
        # Done by the loop that the COMMIT must not block.
        await commits.let_go()
        await working
    assert threads
    assert threading.get_ident() not in threads
    assert await rows() == 1


async def test_commit_in_a_thread_runs_its_callbacks_on_the_loop(sync_database: SyncDatabase, rows: Count) -> None:
    """`Session.commit()` in the thread commits early, with the callbacks around it, which run on the event loop."""
    told: list[tuple[str, int]] = []
    loop_thread = threading.get_ident()

    async def before(session: db.Session) -> None:
        told.append(("before", threading.get_ident()))
        await asyncio.to_thread(write, session, "audit")

    async def on() -> None:
        told.append(("on", threading.get_ident()))

    def work(session: db.Session) -> None:
        write(session)
        session.commit()
        told.append(("committed", threading.get_ident()))
        write(session, "later")
        session.rollback()

    async with db.scope() as here:
        session = await db.session(sync_database)
        db.before_commit(before, sync_database)
        db.on_commit(on, sync_database)
        await asyncio.to_thread(work, session)
        assert [what for what, _ in told] == ["before", "on", "committed"]
        assert [thread == loop_thread for _, thread in told] == [True, True, False]
        assert here.has_committed
    assert await rows() == 2


async def test_commit_on_the_loop_is_refused(sync_database: SyncDatabase, rows: Count) -> None:
    """`session.commit()` on the event loop's own thread would block it: a named error, and the scope can go on."""
    async with db.scope():
        session = await db.session(sync_database)
        await asyncio.to_thread(write, session)
        with pytest.raises(db.WrongThreadError, match=r"asyncio\.to_thread\(session\.commit\)"):
            session.commit()
        await db.commit(sync_database)
        assert await rows() == 1


async def test_commit_that_fails_in_a_thread_is_rolled_back(sync_database: SyncDatabase, rows: Count) -> None:
    """An early COMMIT that the server refuses is the thread's error; it is rolled back, and the session goes on."""

    def work(session: db.Session) -> None:
        write(session)
        session.execute(text("INSERT INTO reply VALUES (404)"))
        with pytest.raises(IntegrityError):
            session.commit()
        write(session, "b")

    async with db.scope():
        await asyncio.to_thread(work, await db.session(sync_database))
    assert await rows() == 1


async def test_before_commit_refuses_a_commit_in_a_thread(sync_database: SyncDatabase, rows: Count) -> None:
    """A before-commit callback that refuses is the error of `Session.commit()` in the thread."""

    async def refuse(_session: db.Session) -> None:
        raise ValueError("over budget")

    def work(session: db.Session) -> None:
        write(session)
        session.commit()

    with pytest.raises(ValueError, match="over budget"):
        async with db.scope():
            session = await db.session(sync_database)
            db.before_commit(refuse, sync_database)
            await asyncio.to_thread(work, session)
    assert await rows() == 0


async def test_begin_blocks_work_in_a_thread(sync_database: SyncDatabase, rows: Count) -> None:
    """`with session.begin():` and `begin_nested()` work in the thread; the former commits through the scope."""
    told: list[str] = []

    def work(session: db.Session) -> None:
        with session.begin():
            write(session, "a")
        assert told == ["a"]
        with pytest.raises(ZeroDivisionError), session.begin():
            write(session, "b")
            raise ZeroDivisionError
        with session.begin():
            write(session, "c")
            session.rollback()
        block = session.begin()
        write(session, "d")
        block.commit()
        block = session.begin()
        write(session, "e")
        block.rollback()
        with session.begin_nested():
            write(session, "f")
        with contextlib.suppress(DBAPIError), session.begin_nested():
            write(session, "g")
            session.execute(text("SELECT 1/0"))
        savepoint = session.begin_nested()
        write(session, "h")
        savepoint.rollback()
        savepoint = session.begin_nested()
        write(session, "i")
        savepoint.commit()

    async with db.scope():
        session = await db.session(sync_database)
        db.on_commit(lambda: told.append("a"), sync_database)
        await asyncio.to_thread(work, session)
    assert await rows() == 4


async def test_callbacks_vanish_with_a_savepoint_in_a_thread(sync_database: SyncDatabase) -> None:
    """D17 in a thread: callbacks made in a savepoint go with its rollback."""
    told: list[str] = []

    def work(session: db.Session) -> None:
        write(session)
        with contextlib.suppress(ZeroDivisionError), session.begin_nested():
            db.on_commit(lambda: told.append("inside"), sync_database)
            raise ZeroDivisionError
        db.on_commit(lambda: told.append("after"), sync_database)

    async with db.scope():
        await asyncio.to_thread(work, await db.session(sync_database))
    assert told == ["after"]


async def test_swallowed_error_refuses_the_commit_through_psycopg(sync_database: SyncDatabase, rows: Count) -> None:
    """A1 for psycopg: a swallowed error refuses the commit, in a savepoint it is forgiven, the driver's is harmless."""

    def swallow(session: db.Session) -> None:
        write(session)
        with contextlib.suppress(DBAPIError):
            session.execute(text("SELECT 1/0"))

    def in_savepoint(session: db.Session) -> None:
        write(session, "b")
        with contextlib.suppress(DBAPIError), session.begin_nested():
            session.execute(text("SELECT 1/0"))

    def of_driver(session: db.Session) -> None:
        write(session, "c")
        with pytest.raises(DBAPIError, match="cannot adapt"):
            session.execute(INSERT, {"words": object()})

    def lost_savepoint(session: db.Session) -> None:
        with session.begin_nested():
            session.add(Note(words="b"))
            with contextlib.suppress(IntegrityError):
                session.flush()

    refused = pytest.raises(db.PoisonedTransactionError)
    cases: list[tuple[Callable[[db.Session], None], Any]] = [
        (swallow, refused),
        (in_savepoint, contextlib.nullcontext()),
        (of_driver, contextlib.nullcontext()),
        (lost_savepoint, pytest.raises(db.PoisonedTransactionError)),
    ]
    for work, expected in cases:
        with expected:
            async with db.scope():
                await asyncio.to_thread(work, await db.session(sync_database))
    assert await rows() == 2


async def test_swallowed_flush_error_refuses_the_commit_through_psycopg(
    sync_database: SyncDatabase, rows: Count
) -> None:
    """A1 for psycopg: a flush that failed and was swallowed refuses the commit, in the thread as well."""

    def work(session: db.Session) -> None:
        session.add_all([Note(words="a"), Note(words="a")])
        with contextlib.suppress(IntegrityError):
            session.flush()

    def work_and_commit(session: db.Session) -> None:
        work(session)
        session.commit()

    for each in (work, work_and_commit):
        with pytest.raises(db.PoisonedTransactionError):
            async with db.scope():
                await asyncio.to_thread(each, await db.session(sync_database))
    assert await rows() == 0


@pytest.mark.parametrize("statement", ["COMMIT", "INSERT INTO note (words) VALUES ('b'); COMMIT", "SELECT 1; ROLLBACK"])
async def test_transaction_control_among_several_statements_is_refused(
    statement: str, sync_database: SyncDatabase, rows: Count
) -> None:
    """A5 for psycopg, which sends several statements in one: the end of the transaction among them is found out."""

    def work(session: db.Session) -> None:
        write(session)
        session.execute(text(statement))

    with pytest.raises(db.RawTransactionError):
        async with db.scope():
            await asyncio.to_thread(work, await db.session(sync_database))
    assert await rows() == (2 if "; COMMIT" in statement else 0)


async def test_several_harmless_statements_may_be_sent_at_once(sync_database: SyncDatabase, rows: Count) -> None:
    """Several statements in one are fine as long as they leave the transaction alone."""

    def work(session: db.Session) -> None:
        session.execute(text("INSERT INTO note (words) VALUES ('a'); INSERT INTO note (words) VALUES ('b;c')"))
        session.execute(text("SELECT ';'"))

    async with db.scope():
        await asyncio.to_thread(work, await db.session(sync_database))
    assert await rows() == 2


async def test_concurrent_use_by_two_threads_is_refused(sync_database: SyncDatabase, postgres: Observer) -> None:
    """Two threads on one session collide by name, and so does an early end meanwhile."""
    async with db.scope():
        session = await db.session(sync_database)
        sleeping = asyncio.create_task(asyncio.to_thread(session.execute, text("SELECT pg_sleep(0.5)")))
        await eventually(lambda: postgres.backends("active"), equals=1)
        attempts: list[Callable[[], Any]] = [
            lambda: session.execute(text("SELECT 1")),
            lambda: session.scalar(text("SELECT 1")),
            lambda: session.scalars(text("SELECT 1")),
            session.connection,
            lambda: session.get(Note, 1),
            lambda: session.add(Note(words="a")),
            session.rollback,
            session.close,
        ]
        for attempt in attempts:
            with pytest.raises(db.ConcurrentUseError):
                await asyncio.to_thread(attempt)
        for end in (db.commit, db.rollback, db.close):
            with pytest.raises(db.ConcurrentUseError):
                await end(sync_database)
        await sleeping


async def test_thread_that_outlives_its_scope_saves_nothing(
    sync_database: SyncDatabase, rows: Count, postgres: Observer
) -> None:
    """C3 for threads: a thread that was given up goes on, its next statement raises, and nothing of it is saved."""
    written, go_on = threading.Event(), threading.Event()
    seen: list[BaseException] = []

    def work(session: db.Session) -> None:
        write(session)
        written.set()
        go_on.wait()
        uses: list[Callable[[], None]] = [
            lambda: write(session, "b"),
            lambda: session.add(Note(words="c")),
            session.commit,
            session.rollback,
        ]
        for use in uses:
            try:
                use()
            except db.DbError as error:
                seen.append(error)
        session.close()

    with pytest.raises(TimeoutError):
        async with db.scope():
            thread = asyncio.to_thread(work, await db.session(sync_database))
            running = asyncio.ensure_future(thread)
            await eventually(written.is_set)
            assert await postgres.idle_in_transaction() == 1
            await asyncio.wait_for(asyncio.shield(running), 0.05)
    assert await postgres.idle_in_transaction() == 0
    go_on.set()
    await running
    assert [type(error) for error in seen] == [db.ScopeEndedError] * 4
    assert await rows() == 0


async def test_failing_scope_stops_a_threads_statement(
    sync_database: SyncDatabase, rows: Count, postgres: Observer
) -> None:
    """A scope that fails while a thread's statement is in flight stops it on the server, then rolls back: at once."""
    with pytest.raises(TimeoutError):
        async with db.scope():
            session = await db.session(sync_database)
            await asyncio.to_thread(write, session)
            running = asyncio.ensure_future(asyncio.to_thread(session.execute, SLEEP))
            await eventually(lambda: postgres.backends("active"), equals=1)
            watch = Stopwatch()
            await asyncio.wait_for(asyncio.shield(running), 0.05)
    assert watch.seconds_running < AT_ONCE
    with pytest.raises(db.ScopeEndedError):
        await running
    assert await postgres.backends("active") == 0
    assert await postgres.idle_in_transaction() == 0
    assert await rows() == 0


async def test_statement_without_an_answer_is_given_up(database_url: str, database: db.Database) -> None:
    """B6 for psycopg, which has no time limit: a server that has stopped answering keeps a scope whose caller's time
    is up no longer than twice the connect timeout."""
    async with Proxy(database_url) as proxy:
        away = db.Database(proxy.url, connect_timeout=1).sync
        watch = Stopwatch()
        with pytest.raises(TimeoutError):
            async with db.scope():
                session = await db.session(away)
                await asyncio.to_thread(session.execute, text("SELECT 1"))
                proxy.blackhole()
                watch = Stopwatch()
                running = asyncio.ensure_future(asyncio.to_thread(session.execute, text("SELECT 2")))
                await asyncio.wait_for(asyncio.shield(running), 0.1)
        assert watch.seconds_running < 2 + AT_ONCE
        with pytest.raises(db.ScopeEndedError):
            await running
        await away.dispose()


async def test_rollback_without_an_answer_is_given_up(
    database_url: str, database: db.Database, caplog: pytest.LogCaptureFixture
) -> None:
    """B6 for psycopg: a ROLLBACK that is not answered is given up, and the original error comes out."""
    async with Proxy(database_url) as proxy:
        away = db.Database(proxy.url, connect_timeout=1).sync
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                session = await db.session(away)
                await asyncio.to_thread(session.execute, text("SELECT 1"))
                proxy.blackhole()
                watch = Stopwatch()
                raise ZeroDivisionError
        assert watch.seconds_running < 2 + AT_ONCE
        assert "its connection is discarded" in caplog.text
        await away.dispose()


async def test_cancellation_waits_for_a_sync_commit(
    sync_database: SyncDatabase, postgres: Observer, rows: Count
) -> None:
    """A3 for psycopg: a cancellation during the COMMIT waits for it, and success is reported."""

    async def work() -> str:
        async with db.scope():
            await asyncio.to_thread(write, await db.session(sync_database))
        return "saved"

    async with held_commits(postgres, "note") as commits:
        task = asyncio.create_task(work())
        await commits.begun()
        task.cancel()
        await asyncio.sleep(0)
        await commits.let_go()
        assert await task == "saved"
    assert await rows() == 1


async def test_connection_lost_in_a_transaction_is_transient(
    sync_database: SyncDatabase, postgres: Observer, rows: Count
) -> None:
    """A7 for psycopg: a connection that was killed in its transaction is worth another try."""

    async def work(*, terminate: bool) -> None:
        async with db.scope():
            session = await db.session(sync_database)
            await asyncio.to_thread(write, session)
            if terminate:
                await postgres.terminate_backends()
                await eventually(postgres.backends, equals=0)

    with pytest.raises(DBAPIError) as lost:
        await work(terminate=True)
    assert transient(lost.value) is Transient.LOST
    await work(terminate=False)
    assert await rows() == 1


async def test_exhausted_pool_is_a_named_error(database: db.Database, sync_database_url: str) -> None:
    """C4 for psycopg: the same named error."""
    small: SyncDatabase = db.Database(sync_database_url, pool_size=1, pool_timeout=0.1)

    async def use() -> None:
        await asyncio.to_thread((await db.session(small)).execute, text("SELECT 1"))

    async with db.scope():
        await use()
        with pytest.raises(db.PoolExhaustedError):
            await db.isolated(use)
    await small.dispose()


async def test_scope_may_use_both_kinds_of_session(sync_database: SyncDatabase, rows: Count) -> None:
    """A scope may use both kinds of session at once: two transactions, which end together."""
    async with db.scope():
        await (await db.session()).execute(INSERT, {"words": "async"})
        await asyncio.to_thread(write, await db.session(sync_database), "sync")
        assert await rows() == 0
    assert await rows() == 2


async def test_isolated_and_independent_take_a_sync_database(sync_database: SyncDatabase, rows: Count) -> None:
    """`isolated` and `independent` work with a synchronous database as well."""

    async def work() -> None:
        await asyncio.to_thread(write, await db.session(sync_database), "isolated")

    await db.isolated(work)
    async with db.independent(sync_database) as session:
        await asyncio.to_thread(write, session, "independent")
        await asyncio.to_thread(session.commit)
        await asyncio.to_thread(write, session, "lost")
    assert await rows() == 2


async def test_objects_can_be_read_after_the_end(sync_database: SyncDatabase) -> None:
    """Objects do not expire at the commit: loaded attributes can be read after the scope."""
    async with db.scope():
        session = await db.session(sync_database)
        session.add(Note(words="a"))
        note = (await asyncio.to_thread(session.scalars, select(Note))).one()
    assert note.words == "a"


async def test_stopped_session_raises_in_its_thread(sync_database: SyncDatabase, rows: Count) -> None:
    """`access.stop(error)` reaches the code in a thread: its next statement raises that error."""
    ready, go_on = threading.Event(), threading.Event()

    def work(session: db.Session) -> None:
        write(session)
        ready.set()
        go_on.wait()
        write(session, "b")

    with pytest.raises(TimeoutError, match="too late"):
        async with db.scope():
            session = await db.session(sync_database)
            running = asyncio.ensure_future(asyncio.to_thread(work, session))
            await asyncio.to_thread(ready.wait)
            session.access.stop(TimeoutError("too late"))
            go_on.set()
            await running
    assert await rows() == 0


async def test_psycopgs_socket_has_time_limits(database: db.Database, database_url: str) -> None:
    """psycopg's socket has time limits of its own, for a peer that does not even acknowledge any more."""
    async with Proxy(database_url) as proxy:
        limited = db.Database(proxy.url, connect_timeout=2, statement_timeout=5).sync
        async with db.scope():
            session = await db.session(limited)
            connection = await asyncio.to_thread(session.connection)
            fileno = connection.connection.driver_connection.fileno()  # type: ignore[union-attr]
            with socket.socket(fileno=os.dup(fileno)) as network:
                assert network.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 7000
                assert network.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 2
        await limited.dispose()


async def test_default_database_may_have_a_sync_driver(
    database: db.Database, sync_database_url: str, monkeypatch: pytest.MonkeyPatch, rows: Count
) -> None:
    """A project that has only synchronous code may name a synchronous driver in DATABASE_URL."""
    db.set_default_database(None)
    monkeypatch.setenv("DATABASE_URL", sync_database_url)
    async with db.scope():
        session: Any = await db.session()
        assert isinstance(session, db.Session)
        await asyncio.to_thread(write, session)
    assert await rows() == 1
    assert make_url(sync_database_url).drivername == "postgresql+psycopg"
    await db.default_database().dispose()


async def test_commit_without_an_answer_is_a_lost_connection(
    database_url: str, database: db.Database, rows: Count
) -> None:
    """B6 for psycopg: a COMMIT that is not answered is given up after the limits, and reported as a lost connection."""
    async with Proxy(database_url) as proxy:
        away = db.Database(proxy.url, connect_timeout=1, statement_timeout=1).sync
        with pytest.raises(DBAPIError) as lost:
            async with db.scope():
                await asyncio.to_thread(write, await db.session(away))
                proxy.blackhole()
                watch = Stopwatch()
        assert watch.seconds >= 2
        assert watch.seconds_running < 2 + AT_ONCE
        assert transient(lost.value) is Transient.LOST
        await away.dispose()
    assert await rows() == 0


async def test_scope_ends_while_all_of_asyncios_threads_are_busy(
    sync_database: SyncDatabase, postgres: Observer
) -> None:
    """Scopes end although every thread of `asyncio.to_thread` is in a statement: they have threads of their own."""
    wide: SyncDatabase = db.Database(sync_database.url, pool_size=40)
    running: list[asyncio.Future[Any]] = []

    async def work() -> None:
        async with db.scope():
            session = await db.session(wide)
            running.append(asyncio.ensure_future(asyncio.to_thread(session.execute, SLEEP)))
            await asyncio.shield(running[-1])

    workers = (os.cpu_count() or 1) + 4
    tasks = [asyncio.create_task(work()) for _ in range(min(32, workers))]
    await eventually(lambda: postgres.backends("active"), equals=len(tasks))
    watch = Stopwatch()
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert watch.seconds_running < AT_ONCE
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    assert all(
        isinstance(error, db.ScopeEndedError) for error in await asyncio.gather(*running, return_exceptions=True)
    )
    assert await postgres.backends("active") == 0
    await wide.dispose()

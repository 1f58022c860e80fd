"""SQLite: BEGIN IMMEDIATE, WAL, one writer at a time."""

import asyncio
import contextlib
import gc
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError, OperationalError

import db
from db.transient import Transient, transient
from tests.db.conftest import INSERT, insert
from tests.db.models import Note
from tests.stopwatch import Stopwatch
from tests.waiting import AT_ONCE, eventually

pytestmark = pytest.mark.usefixtures("sqlite_database")

# Takes many seconds, and holds the write lock.
ENDLESS = text(
    "INSERT INTO note (words) "
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000000) SELECT i FROM n"
)
Rows = Callable[[], int]


@pytest.fixture(params=[True, False], ids=["gc", "no gc"])
def garbage_collection(request: pytest.FixtureRequest) -> Iterator[None]:
    """With the garbage collector on and off."""
    if not request.param:
        gc.disable()
    yield
    gc.enable()


async def test_scope_commits_and_rolls_back(sqlite_rows: Rows) -> None:
    """Scopes commit and roll back as on PostgreSQL."""
    async with db.scope():
        await insert("a")
        assert sqlite_rows() == 0
    assert sqlite_rows() == 1
    with pytest.raises(ZeroDivisionError):
        async with db.scope():
            await insert("b")
            raise ZeroDivisionError
    assert sqlite_rows() == 1


async def test_every_connection_has_wal_busy_timeout_and_foreign_keys() -> None:
    """Every connection has WAL, a busy timeout, and checks foreign keys."""
    async with db.scope():
        session = await db.session()
        assert await session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert await session.scalar(text("PRAGMA busy_timeout")) == 10_000
        assert await session.scalar(text("PRAGMA foreign_keys")) == 1


@pytest.mark.parametrize("driver", ["aiosqlite", "pysqlite"])
@pytest.mark.parametrize("transaction", ["DEFERRED", "IMMEDIATE", "EXCLUSIVE"])
async def test_first_connections_wait_for_the_switch_to_wal(driver: str, transaction: str, tmp_path: Path) -> None:
    """The first connections to a file wait for its readers and writers, and do not find it locked."""
    with contextlib.closing(sqlite3.connect(tmp_path / "new.sqlite", isolation_level=None)) as other:
        other.execute("CREATE TABLE note (id INTEGER PRIMARY KEY, words TEXT)")
        other.execute(f"BEGIN {transaction}")
        other.execute("SELECT count(*) FROM note").fetchall()
        database: db.Database[Any] = db.Database(f"sqlite+{driver}:///{tmp_path}/new.sqlite")

        async def add() -> None:
            async with db.scope() as work:
                session = await work.session(database)
                if isinstance(session, db.AsyncSession):
                    await session.execute(INSERT, {"words": "a"})
                else:
                    await asyncio.to_thread(session.execute, INSERT, {"words": "a"})

        adding = [asyncio.create_task(add()) for _ in range(3)]
        assert not (await asyncio.wait(adding, timeout=0.3, return_when=asyncio.FIRST_COMPLETED))[0]
        other.execute("COMMIT")
        await asyncio.gather(*adding)
        assert other.execute("SELECT count(*) FROM note").fetchone() == (3,)
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        await database.dispose()


@pytest.mark.usefixtures("garbage_collection")
async def test_cancelled_first_connection_frees_the_file(tmp_path: Path) -> None:
    """G: a connection that is cancelled while it waits for the switch to WAL blocks no other one afterwards."""
    with contextlib.closing(sqlite3.connect(tmp_path / "new.sqlite", isolation_level=None)) as other:
        other.execute("CREATE TABLE note (id INTEGER PRIMARY KEY, words TEXT)")
        other.execute("BEGIN EXCLUSIVE")
        database = db.Database[db.AsyncSession](f"sqlite+aiosqlite:///{tmp_path}/new.sqlite", connect_timeout=1.0)

        async def connect() -> None:
            async with db.independent(database) as session:
                await session.connection()

        connecting = asyncio.create_task(connect())
        assert not (await asyncio.wait({connecting}, timeout=0.3))[0]
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        other.execute("COMMIT")
        await database.dispose()  # waits for the connection's end
        other.execute("PRAGMA busy_timeout = 0")
        other.execute("BEGIN IMMEDIATE")


@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_concurrent_read_modify_writes_lose_nothing(
    kind: str, sqlite_database: db.Database, sqlite_rows: Rows
) -> None:
    """G: ten concurrent read-modify-writes give ten, on both kinds of session."""
    async with db.scope():
        await (await db.session()).execute(text("CREATE TABLE counter AS SELECT 0 AS value"))

    async def add_one() -> None:
        async with db.scope():
            session = await db.session()
            value = await session.scalar(text("SELECT value FROM counter"))
            await asyncio.sleep(0.001)
            await session.execute(text("UPDATE counter SET value = :value"), {"value": value + 1})

    def add_one_here(session: db.Session) -> None:
        value = session.scalar(text("SELECT value FROM counter"))
        time.sleep(0.001)
        session.execute(text("UPDATE counter SET value = :value"), {"value": value + 1})

    async def add_one_in_thread() -> None:
        async with db.scope():
            await asyncio.to_thread(add_one_here, await db.session(sqlite_database.sync))

    await asyncio.gather(*((add_one if kind == "async" else add_one_in_thread)() for _ in range(10)))
    async with db.scope():
        assert await (await db.session()).scalar(text("SELECT value FROM counter")) == 10


@pytest.mark.usefixtures("garbage_collection")
@pytest.mark.parametrize("cancellations", [1, 3])
async def test_cancelled_statement_frees_the_lock(
    cancellations: int, sqlite_database: db.Database, sqlite_rows: Rows
) -> None:
    """G: a statement that is cancelled half way is interrupted and rolled back, and the write lock is free at once."""

    async def work() -> None:
        async with db.scope():
            await insert("a")
            await (await db.session()).execute(ENDLESS)

    task = asyncio.create_task(work())
    await asyncio.sleep(0.2)
    watch = Stopwatch()
    for _ in range(cancellations):
        task.cancel()
        await asyncio.sleep(0)
    with pytest.raises(asyncio.CancelledError):
        await task
    async with db.scope():
        await insert("b")
    assert watch.seconds_running < AT_ONCE
    assert sqlite_rows() == 1


@pytest.mark.usefixtures("garbage_collection")
async def test_cancelled_thread_frees_the_lock(sqlite_database: db.Database, sqlite_rows: Rows) -> None:
    """G: the same for a statement in a thread, which the end of the scope interrupts."""
    with pytest.raises(TimeoutError):
        async with db.scope():
            session = await db.session(sqlite_database.sync)
            running = asyncio.ensure_future(asyncio.to_thread(session.execute, ENDLESS))
            await asyncio.wait_for(asyncio.shield(running), 0.2)
    watch = Stopwatch()
    async with db.scope():
        await insert("b")
    assert watch.seconds_running < AT_ONCE
    with pytest.raises(db.ScopeEndedError):
        await running
    assert sqlite_rows() == 1


@pytest.mark.parametrize("way", ["isolated", "scope", "independent", "sync"])
async def test_nested_writer_is_refused(way: str, sqlite_database: db.Database, sqlite_rows: Rows) -> None:
    """G: a second writer inside a scope that writes is a named error at once, and the scope goes on."""
    async with db.scope():
        await insert("a")
        watch = Stopwatch()
        with pytest.raises(db.NestedWriterError, match=r"await db\.commit\(\)"):
            match way:
                case "isolated":
                    await db.isolated(insert, "b")
                case "scope":
                    async with db.scope(), db.scope():
                        await insert("b")
                case "independent":
                    async with db.independent():
                        pass
                case "sync":
                    await db.session(sqlite_database.sync)
        assert watch.seconds_running < AT_ONCE
        await db.commit()
        await db.isolated(insert, "c")
    assert sqlite_rows() == 2


async def test_isolated_works_where_no_transaction_is_open(sqlite_rows: Rows) -> None:
    """`isolated` works in a scope that has no transaction open."""
    async with db.scope():
        await db.session()
        await asyncio.gather(*(db.isolated(insert, str(number)) for number in range(3)))
    assert sqlite_rows() == 3


async def test_busy_timeout_is_transient(sqlite_url: str) -> None:
    """A writer that waits for another longer than the busy timeout gets an error that is worth another try."""
    impatient = db.Database(sqlite_url, connect_timeout=0.05)
    async with db.independent() as holder:
        await holder.execute(INSERT, {"words": "a"})
        with pytest.raises(OperationalError, match="locked") as busy:
            async with db.independent(impatient) as session:
                await session.execute(INSERT, {"words": "b"})
    assert transient(busy.value) is Transient.CONFLICT
    await impatient.dispose()


async def test_reader_does_not_wait_for_a_writer(sqlite_rows: Rows) -> None:
    """A writer does not block a reader on another connection, which sees the committed rows (WAL)."""
    async with db.scope():
        await insert("a")
        assert sqlite_rows() == 0
    assert sqlite_rows() == 1


async def test_error_ends_only_its_statement_or_savepoint(sqlite_rows: Rows) -> None:
    """An error in a savepoint is forgiven; one outside ends only its statement, as SQLite has it."""
    async with db.scope():
        session = await db.session()
        await insert("a")
        with contextlib.suppress(IntegrityError):
            async with session.begin_nested():
                await insert("b")
                await insert("a")
        with contextlib.suppress(IntegrityError):
            await insert("a")
        await insert("c")
    assert sqlite_rows() == 2


async def test_commit_after_sqlites_own_rollback_is_refused(sqlite_rows: Rows) -> None:
    """A1 for SQLite: a transaction that it has rolled back by itself does not pass for a commit."""
    with pytest.raises(db.PoisonedTransactionError):
        async with db.scope():
            await insert("a")
            with contextlib.suppress(IntegrityError):
                await (await db.session()).execute(text("INSERT OR ROLLBACK INTO note (words) VALUES ('a')"))
    assert sqlite_rows() == 0


async def test_commit_sent_as_text_is_refused(sqlite_rows: Rows) -> None:
    """A5 for SQLite."""
    for command in ("COMMIT", "END TRANSACTION", "BEGIN"):
        with pytest.raises(db.RawTransactionError):
            async with db.scope():
                await insert("a")
                await (await db.session()).execute(text(command))
    assert sqlite_rows() == 0


async def test_concurrent_use_and_worker_threads_are_refused(sqlite_rows: Rows) -> None:
    """C1 and C6 for SQLite: the same named errors."""
    async with db.scope():
        session = await db.session()
        results = await asyncio.gather(*(session.execute(text("SELECT 1")) for _ in range(3)), return_exceptions=True)
        assert [type(result) for result in results].count(db.ConcurrentUseError) == 2
        with pytest.raises(db.WrongThreadError):
            await asyncio.to_thread(session.add, Note(words="a"))


async def test_sync_twin_is_sqlite3_with_the_same_rules(sqlite_database: db.Database, sqlite_rows: Rows) -> None:
    """The synchronous twin is the standard library's sqlite3 on the same file, with the same rules."""

    def work(session: db.Session) -> None:
        session.add(Note(words="a"))
        session.flush()
        session.commit()
        session.add(Note(words="b"))
        assert len(session.scalars(select(Note)).all()) == 2
        session.rollback()
        session.add(Note(words="c"))

    async with db.scope():
        session = await db.session(sqlite_database.sync)
        assert isinstance(session, db.Session)
        await asyncio.to_thread(work, session)
        with pytest.raises(db.NestedWriterError):
            await db.isolated(insert, "d")
    assert sqlite_rows() == 2


async def test_atomic_and_callbacks_work_as_on_postgresql(sqlite_rows: Rows) -> None:
    """`atomic` and callbacks work as on PostgreSQL."""
    told: list[str] = []
    async with db.scope():
        async with db.atomic():
            await insert("a")
            db.on_commit(lambda: told.append("a"))
        assert told == ["a"]
        with contextlib.suppress(ZeroDivisionError):
            async with db.atomic("savepoint"):
                db.on_commit(lambda: told.append("b"))
                await insert("b")
                raise ZeroDivisionError
    assert told == ["a"]
    assert sqlite_rows() == 1


async def test_dispose_closes_the_file(sqlite_database: db.Database) -> None:
    """After `dispose` no thread and no connection is left; the next use opens the file again."""
    import threading

    before = {*threading.enumerate()}
    await db.isolated(insert, "a")
    (new,) = {*threading.enumerate()} - before
    await sqlite_database.dispose()
    await eventually(lambda: not new.is_alive(), timeout=AT_ONCE)
    await db.isolated(insert, "b")


async def test_factory_engine_refuses_nested_writers(sqlite_url: str) -> None:
    """A SQLite engine that a factory has made is guarded against nested writers as well."""
    from sqlalchemy.ext.asyncio import create_async_engine

    made = db.Database(engine=lambda _: create_async_engine(sqlite_url), host="local")
    async with db.scope():
        session = await db.session(made)
        await session.execute(text("SELECT 1"))
        with pytest.raises(db.NestedWriterError):
            async with db.independent(made):
                pass
    await made.dispose()

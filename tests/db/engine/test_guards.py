"""Errors for silent losses: aborted transactions, and transactions ended by statements as text."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest
from sqlalchemy import String, TypeDecorator, bindparam, event, make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

import db
from db.engine import guards
from db.engine.guards import _facts
from db.transient import Transient, transient
from tests.db.conftest import INSERT, Count, insert
from tests.db.models import Note
from tests.proxy import Proxy
from tests.servers import Observer, as_url
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("database")

FAILS = text("SELECT 1/0")


async def test_commit_after_a_swallowed_error_is_refused(rows: Count, postgres: Observer) -> None:
    """A1: insert, a swallowed error, leave: the commit is refused with its cause, 0 rows; the connection is whole."""
    with pytest.raises(db.PoisonedTransactionError, match="begin_nested") as refused:
        async with db.scope():
            await insert("a")
            session = await db.session()
            with contextlib.suppress(DBAPIError):
                await session.execute(FAILS)
    assert "division by zero" in str(refused.value.__cause__)
    assert await rows() == 0
    assert await postgres.idle_in_transaction() == 0
    async with db.scope():
        await insert("b")
    assert await rows() == 1
    assert await postgres.backends() == 1


async def test_error_in_a_savepoint_rolls_back_only_the_savepoint(rows: Count) -> None:
    """A1: the same inside `begin_nested`: the savepoint is rolled back, the rest is saved."""
    async with db.scope():
        await insert("a")
        session = await db.session()
        with contextlib.suppress(DBAPIError):
            async with session.begin_nested():
                await insert("b")
                await session.execute(FAILS)
    assert await rows() == 1


async def test_savepoint_whose_error_was_swallowed_cannot_be_released(rows: Count) -> None:
    """A1: an error swallowed inside the savepoint's block, whose end cannot be released then, is an error."""
    with pytest.raises(DBAPIError, match="current transaction is aborted"):
        async with db.scope():
            await insert("a")
            session = await db.session()
            async with session.begin_nested():
                with contextlib.suppress(DBAPIError):
                    await session.execute(FAILS)
    assert await rows() == 0


async def test_commit_after_a_swallowed_flush_error_is_refused(rows: Count) -> None:
    """A1: a flush whose error was swallowed has rolled the transaction back: the same named error."""
    await db.isolated(insert, "a")
    with pytest.raises(db.PoisonedTransactionError):
        async with db.scope():
            await insert("b")
            session = await db.session()
            session.add(Note(words="a"))
            with contextlib.suppress(IntegrityError):
                await session.flush()
    assert await rows() == 1


@pytest.mark.parametrize("end", ["commit", "session.commit", "begin", "atomic"])
async def test_early_commit_after_a_swallowed_error_is_refused(end: str, rows: Count) -> None:
    """A1: an early commit after a swallowed error is refused; the transaction is over, and the session can go on."""

    async def swallow() -> None:
        session = await db.session()
        await insert("a")
        with contextlib.suppress(DBAPIError):
            await session.execute(FAILS)

    async with db.scope():
        session = await db.session()
        with pytest.raises(db.PoisonedTransactionError):
            match end:
                case "commit":
                    await swallow()
                    await db.commit()
                case "session.commit":
                    await swallow()
                    await session.commit()
                case "begin":
                    async with session.begin():
                        await swallow()
                case "atomic":
                    async with db.atomic():
                        await swallow()
        assert await rows() == 0
        await insert("b")
    assert await rows() == 1


async def test_early_rollback_after_an_error_makes_the_session_usable(rows: Count) -> None:
    """A1: an early rollback after the error makes the session whole again."""
    async with db.scope():
        await insert("a")
        with contextlib.suppress(DBAPIError):
            await (await db.session()).execute(FAILS)
        await db.rollback()
        await insert("b")
    assert await rows() == 1


async def test_savepoints_may_be_sent_as_text(rows: Count) -> None:
    """SAVEPOINT, RELEASE and ROLLBACK TO may be sent as text, and an error between them is forgiven as well."""
    async with db.scope():
        session = await db.session()
        await insert("a")
        await session.execute(text("SAVEPOINT mine"))
        with contextlib.suppress(DBAPIError):
            await session.execute(FAILS)
        await session.execute(text("ROLLBACK TO SAVEPOINT mine"))
        await session.execute(text("RELEASE SAVEPOINT mine"))
        await insert("b")
    assert await rows() == 2


async def test_error_that_never_reached_the_server_leaves_the_transaction_whole(rows: Count) -> None:
    """A value that asyncpg cannot encode never reached the server: the transaction is whole, and commits."""
    async with db.scope():
        await insert("a")
        with pytest.raises(DBAPIError, match="expected str, got int"):
            await insert(7)  # type: ignore[arg-type]
        await insert("b")
    assert await rows() == 2


class Unreadable(TypeDecorator[str]):
    """A type of a user's own that fails to convert a parameter."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> str:  # noqa: ARG002 - SQLAlchemy's signature
        raise FileNotFoundError("no such key")


async def test_error_of_a_users_type_is_no_lost_connection(rows: Count) -> None:
    """What a type decorator raises, an `OSError` even, is no lost connection, and the transaction is whole."""
    async with db.scope():
        await insert("a")
        statement = INSERT.bindparams(bindparam("words", type_=Unreadable()))
        with pytest.raises(Exception, match="no such key") as raised:
            await (await db.session()).execute(statement, {"words": "b"})
        assert transient(raised.value) is None
    assert await rows() == 1


async def test_poisoned_transaction_is_as_transient_as_the_swallowed_error(database: db.Database, rows: Count) -> None:
    """A swallowed conflict is worth another try. A swallowed programming error is not."""
    async with db.independent() as holder:
        await holder.execute(text("LOCK TABLE note IN ACCESS EXCLUSIVE MODE"))
        with pytest.raises(db.PoisonedTransactionError) as refused:
            async with db.scope():
                session = await db.session()
                await session.execute(text("SET LOCAL lock_timeout = '20ms'"))
                with contextlib.suppress(DBAPIError):
                    await insert("a")
    assert transient(refused.value) is Transient.CONFLICT
    with pytest.raises(db.PoisonedTransactionError) as refused:
        async with db.scope():
            with contextlib.suppress(DBAPIError):
                await (await db.session()).execute(FAILS)
    assert transient(refused.value) is None


@pytest.mark.parametrize(
    "command",
    [
        "COMMIT",
        "commit",
        " ROLLBACK",
        "-- over\nCOMMIT",
        "-- over\rCOMMIT",
        "/* a */ rollback work",
        "/* a /* b */ SELECT */ commit",
        ";COMMIT",
        pytest.param(f"/* {'long ' * 2000}*/ COMMIT", id="after a long comment"),
        pytest.param(f"{'/* a */ ' * 1000}COMMIT", id="after many comments"),
        "BEGIN",
        "START TRANSACTION",
        "END",
        "ABORT",
    ],
)
async def test_transaction_control_sent_as_text_is_refused(command: str, rows: Count) -> None:
    """A5: COMMIT, ROLLBACK or BEGIN as text is a named error, and 0 rows, so a retry can never make 2."""
    with pytest.raises(db.RawTransactionError, match="as text"):
        async with db.scope():
            await insert("a")
            await (await db.session()).execute(text(command))
    with pytest.raises(db.RawTransactionError, match="as text"):  # also when it was seen before
        async with db.scope():
            await insert("a")
            await (await db.session()).execute(text(command))
    assert await rows() == 0


async def test_transaction_control_through_the_sessions_connection_is_refused(rows: Count) -> None:
    """A5: the same through the session's connection and the driver's SQL."""
    sends: list[Callable[[AsyncConnection], Awaitable[Any]]] = [
        lambda connection: connection.execute(text("COMMIT")),
        lambda connection: connection.exec_driver_sql("COMMIT"),
    ]
    for send in sends:
        with pytest.raises(db.RawTransactionError):
            async with db.scope():
                await insert("a")
                connection = await (await db.session()).connection()
                await send(connection)
    assert await rows() == 0


HARMLESS = [
    "SELECT begin_date, end_date FROM (SELECT 1 AS begin_date, 2 AS end_date) AS dates",
    "SELECT 'COMMIT; ROLLBACK'",
    "DO $$ BEGIN PERFORM 1; END $$",
    "CREATE FUNCTION f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END; $$",
    "SELECT CASE WHEN true THEN 1 END",
    "SAVEPOINT commit_point",
    "RELEASE commit_point",
    "-- COMMIT\nSELECT 1",
    "/* BEGIN */ SELECT 1",
    "/* a /* b */ COMMIT */ SELECT 1",
    "/* a */ SELECT CASE WHEN true THEN 1 /* b */ END",
    "/* a */" * 100 + "SELECT 1",
    "SET TRANSACTION ISOLATION LEVEL READ COMMITTED",
    "WITH ended AS (SELECT 1) SELECT * FROM ended",
]


async def test_statements_that_only_look_like_transaction_control_are_sent(rows: Count) -> None:
    """Statements that only look like one of these are sent."""
    async with db.scope():
        session = await db.session()
        for statement in sorted(HARMLESS, key=lambda each: not each.startswith("SET")):
            await session.execute(text(statement))
        await insert("a")
    assert await rows() == 1


@pytest.mark.parametrize("statement", ["end_of_day()", "begin_work", "commits", "rollback to a", "ROLLBACK WORK TO a"])
def test_words_that_begin_like_transaction_control_end_no_transaction(statement: str) -> None:
    """Words that begin alike, and the rollback to a savepoint, are not taken for the end of a transaction."""
    assert _facts(statement).ends_by is None


@pytest.mark.parametrize(
    "statement", ["ROLLBACK TO a", " rollback  transaction to savepoint a", "/**/ROLLBACK WORK TO a"]
)
def test_every_spelling_of_rollback_to_savepoint_is_recognised(statement: str) -> None:
    """All of PostgreSQL's spellings are known."""
    assert _facts(statement).is_to_savepoint


def test_commit_after_sqlites_unnested_comment_is_found() -> None:
    """SQLite's comments do not nest: what follows the first end of one is a statement there."""
    assert _facts("/* a /* b */ COMMIT").ends_by == "COMMIT"


async def test_isolation_level_can_be_set(rows: Count) -> None:
    """The isolation level can be set as text and through SQLAlchemy, as the first thing in a transaction."""
    async with db.scope():
        session = await db.session()
        await session.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        assert await session.scalar(text("SHOW transaction_isolation")) == "serializable"
        await insert("a")
    async with db.scope():
        session = await db.session()
        await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        assert await session.scalar(text("SHOW transaction_isolation")) == "repeatable read"
        await insert("b")
    async with db.scope():
        assert await (await db.session()).scalar(text("SHOW transaction_isolation")) == "read committed"
    assert await rows() == 2


async def test_error_on_an_autocommit_connection_ends_only_its_statement(rows: Count) -> None:
    """On an AUTOCOMMIT connection an error ends only its own statement."""
    async with db.scope():
        session = await db.session()
        await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        await insert("a")
        with contextlib.suppress(DBAPIError):
            await session.execute(FAILS)
        await insert("b")
    assert await rows() == 2


async def add_by_driver(session: Any) -> None:
    """Insert one row past SQLAlchemy, by what each driver is used directly for."""
    if isinstance(session, db.Session):
        await asyncio.to_thread(_add_by_sync_driver, session)
        return
    driver: Any = (await (await session.connection()).get_raw_connection()).driver_connection
    match type(driver).__module__.partition(".")[0]:
        case "asyncpg":
            await driver.copy_records_to_table("note", records=[("a",)], columns=["words"])
        case "psycopg":
            async with driver.cursor().copy("COPY note (words) FROM STDIN") as copy:
                await copy.write_row(("a",))
        case _:
            await driver.execute("INSERT INTO note (words) VALUES ('a')")


def _add_by_sync_driver(session: db.Session) -> None:
    driver: Any = session.connection().connection.driver_connection
    driver.execute("INSERT INTO note (words) VALUES ('a')")


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "psycopg_async"])
async def test_driver_used_first_is_part_of_the_transaction(driver: str, database_url: str, rows: Count) -> None:
    """A direct use of the driver before any statement is part of the transaction, with every driver."""
    database: db.Database[Any] = db.Database(as_url(make_url(database_url), driver))
    with pytest.raises(ValueError, match="after it"):
        async with db.scope():
            await add_by_driver(await db.session(database))
            raise ValueError("after it")
    assert await rows() == 0
    async with db.scope():
        await add_by_driver(await db.session(database))
    assert await rows() == 1
    await database.dispose()


@pytest.mark.parametrize("driver", ["aiosqlite", "pysqlite"])
async def test_driver_used_first_is_part_of_the_transaction_on_sqlite(
    driver: str, sqlite_database: db.Database, sqlite_rows: Callable[[], int]
) -> None:
    """The same on SQLite."""
    database: Any = sqlite_database if driver == "aiosqlite" else sqlite_database.sync
    with pytest.raises(ValueError, match="after it"):
        async with db.scope():
            await add_by_driver(await db.session(database))
            raise ValueError("after it")
    assert sqlite_rows() == 0


async def test_driver_used_first_after_an_early_commit_is_part_of_the_transaction(rows: Count) -> None:
    """Each transaction of a session begins on the server when it begins in SQLAlchemy, not only the first."""
    with pytest.raises(ValueError, match="after it"):
        async with db.scope():
            await insert("b")
            await db.commit()
            await add_by_driver(await db.session())
            raise ValueError("after it")
    assert await rows() == 1


async def test_guards_send_no_statement_of_their_own(database: db.Database, database_url: str, rows: Count) -> None:
    """A unit of work is BEGIN, its own statements and COMMIT on the wire; one without statements sends nothing."""
    async with Proxy(database_url) as proxy:
        behind = db.Database(proxy.url, pre_ping=False)

        async def add() -> None:
            async with db.scope():
                await (await db.session(behind)).execute(INSERT, {"words": "a"})
                await db.rollback()

        await add()  # it gets to know the server
        proxy.statements.clear()
        await add()
        assert [sent.strip(";").partition(" ")[0] for sent in proxy.statements] == ["BEGIN", "INSERT", "ROLLBACK"]
        proxy.statements.clear()
        async with db.scope():
            await db.session(behind)
        assert proxy.statements == []
        await behind.dispose()
    assert await rows() == 0


async def test_begin_listener_may_send_a_statement(database_url: str, rows: Count) -> None:
    """A listener of the user's own may have begun the transaction with a statement of its own."""
    engine = create_async_engine(database_url)
    event.listen(engine.sync_engine, "begin", lambda connection: connection.exec_driver_sql("SET LOCAL work_mem = 64"))
    database = db.Database(bind=engine)
    async with db.scope():
        await (await db.session(database)).execute(INSERT, {"words": "a"})
    assert await rows() == 1
    await engine.dispose()


async def test_executemany_writes_all_rows_or_poisons_the_transaction(rows: Count) -> None:
    """executemany is one operation: it writes all rows, or an error and a refused commit."""
    async with db.scope():
        session = await db.session()
        await session.execute(INSERT, [{"words": str(number)} for number in range(1000)])
        session.add_all(Note(words=f"object {number}") for number in range(100))
    assert await rows() == 1100
    with pytest.raises(db.PoisonedTransactionError):
        async with db.scope():
            with contextlib.suppress(IntegrityError):
                await (await db.session()).execute(INSERT, [{"words": "new"}, {"words": "1"}])
    assert await rows() == 1100


async def test_error_while_streaming_poisons_the_transaction(rows: Count) -> None:
    """An error that arrives while a result is fetched aborts the transaction like any other."""
    with pytest.raises(db.PoisonedTransactionError):
        async with db.scope():
            await insert("a")
            session = await db.session()
            result = await session.stream(text("SELECT 10 / (3000 - n) FROM generate_series(1, 4000) AS n"))
            # SQLAlchemy passes on asyncpg's own exception here.
            with pytest.raises(asyncpg.DivisionByZeroError):
                async for _ in result:
                    pass
    assert await rows() == 0


async def test_conflict_while_streaming_is_transient(rows: Count) -> None:
    """A conflict that arrives while a result is fetched is worth another try, though it arrives as the driver's own."""
    async with db.independent() as holder:
        await holder.execute(text("SELECT pg_advisory_xact_lock(7)"))
        with pytest.raises(asyncpg.LockNotAvailableError) as lost:
            async with db.scope():
                session = await db.session()
                await session.execute(text("SET LOCAL lock_timeout = '20ms'"))
                slow_start = text(
                    "SELECT CASE n WHEN 3000 THEN pg_advisory_xact_lock(7)::text END FROM generate_series(1, 4000) AS n"
                )
                async for _ in await session.stream(slow_start):
                    pass
    assert transient(lost.value) is Transient.CONFLICT


async def test_guards_are_installed_once_an_engine(database: db.Database) -> None:
    """Guards do not pile up, also where each session has a copy of the engine with its own options."""
    async with db.scope():
        engine = (await (await db.session()).connection()).engine.sync_engine
    before = engine.dialect.do_commit
    for schema in ("one", "two"):
        guards.install(engine.execution_options(schema_translate_map={None: schema}))
    assert engine.dialect.do_commit is before


async def test_deferred_constraint_error_rolls_back_and_is_final(rows: Count) -> None:
    """A4: a foreign key that is checked at COMMIT is the caller's error, final, and rolls all back."""
    with pytest.raises(IntegrityError) as refused:
        async with db.scope():
            await insert("a")
            await (await db.session()).execute(text("INSERT INTO reply VALUES (404)"))
    assert transient(refused.value) is None
    assert await rows() == 0


async def test_early_commit_that_fails_is_rolled_back(rows: Count) -> None:
    """A4: an early COMMIT that the server refuses is over: the error comes out, and the session goes on anew."""
    async with db.scope():
        session = await db.session()
        await insert("a")
        await session.execute(text("INSERT INTO reply VALUES (404)"))
        with pytest.raises(IntegrityError):
            await db.commit()
        await insert("b")
    assert await rows() == 1


async def test_write_skew_makes_one_transaction_transient(postgres: Observer, rows: Count) -> None:
    """A4: of two SERIALIZABLE transactions that each read what the other writes, one is worth another try."""

    async def both_read_then_write(words: str, read: asyncio.Barrier) -> None:
        async with db.scope():
            session = await db.session()
            await session.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
            await session.scalar(text("SELECT count(*) FROM note"))
            await read.wait()
            await insert(words)

    read = asyncio.Barrier(2)
    results = await asyncio.gather(
        both_read_then_write("a", read), both_read_then_write("b", read), return_exceptions=True
    )
    errors = [result for result in results if isinstance(result, BaseException)]
    assert [transient(error) for error in errors] == [Transient.CONFLICT]
    assert await rows() == 1
    assert await postgres.idle_in_transaction() == 0


@pytest.mark.parametrize("terminated", ["idle in transaction", "active"])
async def test_work_on_a_terminated_connection_is_transient(terminated: str, rows: Count, postgres: Observer) -> None:
    """A7: a connection killed while idle in its transaction, or in a statement: another try gives 1 row."""

    async def work() -> None:
        async with db.scope():
            await insert("a")
            session = await db.session()
            if terminated == "active":
                sleeping = asyncio.ensure_future(session.execute(text("SELECT pg_sleep(30)")))
                await eventually(lambda: postgres.backends("active"), equals=1)
                await postgres.terminate_backends()
                await sleeping
            else:
                await postgres.terminate_backends()
                await eventually(postgres.backends, equals=0)

    with pytest.raises((DBAPIError, db.DbError)) as lost:
        await work()
    assert transient(lost.value) is Transient.LOST
    assert await rows() == 0
    await db.isolated(insert, "a")
    assert await rows() == 1


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg_async"])
async def test_terminated_connection_noticed_by_the_driver_is_transient(
    driver: str, database_url: str, rows: Count, postgres: Observer
) -> None:
    """A7: the same where the driver, used directly, is the first to notice."""
    database: db.Database[Any] = db.Database(as_url(make_url(database_url), driver))
    with pytest.raises(Exception, match=r"closed|terminat|lost|cannot switch to state") as lost:
        async with db.scope():
            connection = await (await db.session(database)).connection()
            driver_connection: Any = (await connection.get_raw_connection()).driver_connection
            await driver_connection.execute("SELECT 1")
            await postgres.terminate_backends()
            await eventually(postgres.backends, equals=0)
            await driver_connection.execute("INSERT INTO note (words) VALUES ('a')")
    assert transient(lost.value) is Transient.LOST
    async with db.scope():
        await add_by_driver(await db.session(database))
    assert await rows() == 1
    await database.dispose()


async def test_connection_ended_by_the_server_is_lost_whatever_the_idle_limit(rows: Count, postgres: Observer) -> None:
    """The session is not blamed where the server ends a running statement, whatever idle limit it has set."""
    with pytest.raises(DBAPIError) as lost:
        async with db.scope():
            session = await db.session()
            await session.execute(text("SET LOCAL idle_in_transaction_session_timeout = '10min'"))
            await insert("a")
            sleeping = asyncio.ensure_future(session.execute(text("SELECT pg_sleep(30)")))
            await eventually(lambda: postgres.backends("active"), equals=1)
            await postgres.terminate_backends()
            await sleeping
    assert transient(lost.value) is Transient.LOST
    assert await rows() == 0


async def test_connection_without_an_idle_limit_is_lost_not_ended(
    database_url: str, rows: Count, postgres: Observer
) -> None:
    """With `idle_in_transaction_timeout=0` no transaction sits idle for too long."""
    database = db.Database(database_url, idle_in_transaction_timeout=0)
    with pytest.raises((DBAPIError, db.DbError)) as lost:
        async with db.scope():
            session = await db.session(database)
            await session.execute(INSERT, {"words": "a"})
            await postgres.terminate_backends()
            await eventually(postgres.backends, equals=0)
            await session.execute(INSERT, {"words": "b"})
    assert transient(lost.value) is Transient.LOST
    assert await rows() == 0
    await database.dispose()


async def test_ending_ones_own_connection_leaves_the_pool_alone() -> None:
    """Only a server that is away makes the pool open new ones."""

    async def backend() -> int:
        return int(await (await db.session()).scalar(text("SELECT pg_backend_pid()")))

    async def end_own() -> None:
        await (await db.session()).execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    async with db.scope():
        other = await backend()
        with pytest.raises(db.ConnectionEndedError):
            await db.isolated(end_own)
    assert other in [await db.isolated(backend) for _ in range(2)]


async def test_connection_left_in_a_transaction_is_replaced(database_url: str) -> None:
    """A COMMIT cancelled on the server leaves such a transaction. The next session gets another connection."""
    database = db.Database(database_url, pool_size=1, pre_ping=False, reset="never")
    async with db.scope():
        session = await db.session(database)
        raw: Any = (await (await session.connection()).get_raw_connection()).dbapi_connection

        def begin_again(_session: object) -> None:
            raw.run_async(lambda driver: driver.execute("BEGIN"))

        event.listen(session.sync_session, "after_commit", begin_again)
    async with db.scope():
        assert await (await db.session(database)).scalar(text("SELECT 1")) == 1
    await database.dispose()


async def test_scope_goes_on_after_a_lost_connection_was_rolled_back(postgres: Observer) -> None:
    """After a swallowed lost connection the scope cannot end well; after an early rollback it can."""
    async with db.scope():
        await insert("a")
        await postgres.terminate_backends()
        await eventually(postgres.backends, equals=0)
        with contextlib.suppress(DBAPIError, db.DbError):
            await insert("b")
        with pytest.raises(db.PoisonedTransactionError):
            await db.commit()
        await insert("c")
    assert await postgres.fetchval("SELECT string_agg(words, '') FROM note") == "c"

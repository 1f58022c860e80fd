"""Returned connections are as new: the next unit of work does not find the settings of the last one."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import event, make_url, text

import db
from db.engine import reset
from tests.proxy import Proxy
from tests.servers import Observer, as_url

STATE = {
    "search_path": "SET search_path TO pg_catalog",
    "role": "SET ROLE pg_monitor",
    "advisory lock": "SELECT pg_advisory_lock(1)",
    "temporary table": "CREATE TEMP TABLE scratch (n int)",
    "listen": "LISTEN news",
    "prepare": "PREPARE mine AS SELECT 1",
    "setting": "SELECT set_config('work_mem', '128kB', false)",
    "limit": "SET statement_timeout = 0",
    "read-only": "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
}
LOOK = text("""
    SELECT current_setting('search_path'), current_user = session_user, to_regclass('pg_temp.scratch'),
        current_setting('statement_timeout'), current_setting('transaction_read_only'), current_setting('work_mem'),
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT count(*) FROM pg_listening_channels()),
        (SELECT count(*) FROM pg_prepared_statements WHERE from_sql)
""")
AS_NEW = ('"$user", public', True, None, "7s", "off", "4MB", 0, 0, 0)
PID = text("SELECT pg_backend_pid()")


async def run(session: Any, *statements: Any) -> Any:
    """Run statements in a session of either kind; the last one's first row."""
    result: Any = None
    for statement in statements:
        if isinstance(session, db.Session):
            result = await asyncio.to_thread(session.execute, statement)
        else:
            result = await session.execute(statement)
    return tuple(result.one()) if result.returns_rows else None


async def in_scope(database: db.Database[Any], *statements: Any) -> Any:
    async with db.scope():
        return await run(await db.session(database), *statements)


@contextlib.asynccontextmanager
async def opened(url: str, driver: str = "asyncpg", **options: Any) -> AsyncIterator[db.Database[Any]]:
    """A database with a single connection."""
    options = {"pool_size": 1, "statement_timeout": 7, "pre_ping": False} | options
    database = db.Database[Any](as_url(make_url(url), driver), **options)
    try:
        yield database
    finally:
        await database.dispose()


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "psycopg_async"])
@pytest.mark.parametrize("ends", ["committed", "rolled back"])
@pytest.mark.parametrize("left", STATE.values(), ids=STATE)
async def test_next_session_finds_nothing_that_the_last_one_set(
    database_url: str, driver: str, left: str, ends: str
) -> None:
    """The same connection has the settings that it was opened with, and its prepared statements."""
    async with opened(database_url, driver) as database:
        before = await in_scope(database, PID)
        assert await in_scope(database, LOOK) == AS_NEW
        with contextlib.suppress(ValueError):
            async with db.scope():
                await run(await db.session(database), text(left))
                if ends == "rolled back":
                    raise ValueError
        assert await in_scope(database, LOOK) == AS_NEW
        assert await in_scope(database, PID) == before


DirectUse = Callable[[Any], Awaitable[Any]]
TAKE = "SELECT pg_advisory_lock(1)"
USES: dict[str, DirectUse] = {
    "the pool's": lambda raw: raw.driver_connection.execute(TAKE),
    "the adapter's": lambda raw: raw.dbapi_connection.driver_connection.execute(TAKE),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_driver_used_directly_is_reset(database_url: str, use: DirectUse) -> None:
    """Statements on the driver's connection are not read, so each use counts as a change."""
    async with opened(database_url) as database:
        async with db.scope():
            session = await db.session(database)
            await use(await (await session.connection()).get_raw_connection())
        assert await in_scope(database, LOOK) == AS_NEW


async def test_driver_used_through_run_async_is_reset(database_url: str) -> None:
    """`run_async`, which listeners use, counts as a direct use."""

    def take(session: Any) -> None:
        session.connection().connection.dbapi_connection.run_async(lambda driver: driver.execute(TAKE))

    async with opened(database_url) as database:
        async with db.scope():
            await (await db.session(database)).run_sync(take)
        assert await in_scope(database, LOOK) == AS_NEW


async def test_listeners_of_asyncpg_end_with_their_session(database_url: str, postgres: Observer) -> None:
    """asyncpg's listeners end with their unit of work, and can be added anew in the next."""
    heard: list[Any] = []

    async def listen(database: db.Database[Any]) -> None:
        session = await db.session(database)
        driver: Any = (await (await session.connection()).get_raw_connection()).driver_connection
        await driver.add_listener("news", lambda *said: heard.append(said[-1]))

    async with opened(database_url) as database:
        async with db.scope():
            await listen(database)
        await postgres.execute("NOTIFY news, 'one'")
        await in_scope(database, LOOK)
        assert heard == []
        async with db.scope():
            await listen(database)
            await db.commit()
            await postgres.execute("NOTIFY news, 'two'")
            await run(await db.session(database), LOOK)
        assert heard == []
        assert await in_scope(database, LOOK) == AS_NEW


async def test_unchanged_connection_costs_no_statement(database_url: str) -> None:
    """A unit of work with settings local to its transaction costs no statement, any other one statement."""
    async with Proxy(database_url) as proxy, opened(proxy.url) as database:
        await in_scope(database, text("SET LOCAL work_mem = 128"))
        proxy.statements.clear()
        await in_scope(database, text("SET LOCAL work_mem = 128"), text("SELECT pg_advisory_xact_lock(1)"))
        assert len(proxy.statements) == 4
        proxy.statements.clear()
        await in_scope(database, text("SET work_mem = 128"))
        assert [sent.split()[0] for sent in proxy.statements] == ["BEGIN;", "SET", "COMMIT;", "SET"]


@pytest.mark.parametrize(("which", "found"), [("always", "4MB"), ("changed", "128kB"), ("never", "128kB")])
async def test_change_inside_a_function_needs_reset_always(
    database_url: str, postgres: Observer, which: str, found: str
) -> None:
    """A change inside a function cannot be read from the statement. Only `reset="always"` undoes it."""
    await postgres.execute(
        "CREATE FUNCTION quietly() RETURNS text RETURN set_config('work_mem', '128kB', false)",
    )
    async with opened(database_url, reset=which) as database:
        await in_scope(database, text("SELECT quietly()"))
        assert await in_scope(database, text("SHOW work_mem")) == (found,)


async def test_reset_never_leaves_connections_as_they_are(database_url: str) -> None:
    """`reset="never"` leaves connections as they come back."""
    async with opened(database_url, reset="never") as database:
        await in_scope(database, text("SET work_mem = 128"))
        assert await in_scope(database, text("SHOW work_mem")) == ("128kB",)


async def test_connection_set_up_by_a_listener_is_replaced(database_url: str) -> None:
    """A reset would undo the work of a `connect` listener. Such a connection is replaced, and set up again."""
    async with opened(database_url) as database:
        async with db.scope():
            pool = (await (await db.session(database)).connection()).engine.pool

        def connected(dbapi_connection: Any, _record: Any) -> None:
            cursor = dbapi_connection.cursor()
            cursor.execute("SET work_mem = '256kB'")
            dbapi_connection.commit()

        event.listen(pool, "connect", connected)
        pool.dispose()
        before = await in_scope(database, PID)
        await in_scope(database, text(STATE["search_path"]))
        assert await in_scope(database, PID) != before
        assert await in_scope(database, text("SHOW work_mem")) == ("256kB",)
        assert (await in_scope(database, LOOK))[0] == '"$user", public'


async def test_connection_that_cannot_be_reset_is_replaced(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is replaced without an error to the code that returned it."""
    monkeypatch.setattr(reset, "_RESET", "SELECT 1 / 0")
    async with opened(database_url) as database:
        before = await in_scope(database, PID)
        await in_scope(database, text(STATE["role"]))
        assert await in_scope(database, LOOK) == AS_NEW
        assert await in_scope(database, PID) != before


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "psycopg_async"])
async def test_reset_goes_back_to_the_role_of_the_connection(database_url: str, driver: str) -> None:
    """After a session that has set another role, the next one has the rights of the first role again."""
    role = text("SELECT current_user::text")
    settings = "server_settings" if driver == "asyncpg" else "options"
    opened_with: Any = {"role": "pg_monitor"} if driver == "asyncpg" else "-c role=pg_monitor"
    options = {"connect_args": {settings: opened_with}}
    async with opened(database_url, driver, engine_options=options) as database:
        assert await in_scope(database, role) == ("pg_monitor",)
        for left in ("SET work_mem = 128", "SET ROLE NONE", "RESET ROLE"):
            await in_scope(database, text(left))
            assert await in_scope(database, role) == ("pg_monitor",)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "psycopg_async"])
async def test_reset_keeps_autocommit(database_url: str, driver: str) -> None:
    """An engine whose sessions have no transactions still has none."""
    async with opened(database_url, driver, engine_options={"isolation_level": "AUTOCOMMIT"}) as database:
        await in_scope(database, text("SET work_mem = 128"))
        await in_scope(database, text("VACUUM pg_catalog.pg_am"))


async def test_session_state_behind_a_pooler_is_logged_once(
    database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A reset would reach another backend, so there is one warning instead."""
    async with opened(database_url, pooler=True) as database:
        with caplog.at_level(logging.WARNING, "db"):
            for _ in range(2):
                await in_scope(database, text("SET work_mem = 128"))
    assert sum("behind a pooler" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("driver", ["aiosqlite", "pysqlite"])
@pytest.mark.parametrize("left", ["PRAGMA cache_size = 77", "CREATE TEMP TABLE scratch (n int)"])
async def test_changed_sqlite_connection_is_replaced(sqlite_database: db.Database, driver: str, left: str) -> None:
    """A connection that was changed is replaced."""
    database: Any = sqlite_database if driver == "aiosqlite" else sqlite_database.sync
    look = text("SELECT count(*), (SELECT cache_size != 77 FROM pragma_cache_size) FROM temp.sqlite_master")
    before = await in_scope(database, look)
    await in_scope(database, text(left))
    assert await in_scope(database, look) == before

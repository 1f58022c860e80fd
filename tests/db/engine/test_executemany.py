"""A cancellation takes effect at once while many rows are being written, and the server stops."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

import db
from tests.servers import Observer
from tests.waiting import at_once, eventually

Write = Callable[[db.AsyncSession], Awaitable[Any]]

# More than the buffers between the two processes hold, so that the driver has to wait until the server reads.
ROWS = [(number, "x" * 1_000_000) for number in range(40)]
INSERT = text("INSERT INTO load VALUES (:id, :words)")


async def execute_many(session: db.AsyncSession) -> None:
    await session.execute(INSERT, [{"id": number, "words": words} for number, words in ROWS])


async def driver_execute_many(session: db.AsyncSession) -> None:
    await (await driver_connection(session)).executemany("INSERT INTO load VALUES ($1, $2)", ROWS)


async def driver_fetch_many(session: db.AsyncSession) -> None:
    await (await driver_connection(session)).fetchmany("INSERT INTO load VALUES ($1, $2) RETURNING id", ROWS)


async def driver_copy(session: db.AsyncSession) -> None:
    await (await driver_connection(session)).copy_records_to_table("load", records=ROWS)


async def driver_connection(session: db.AsyncSession) -> Any:
    connection = await (await session.connection()).get_raw_connection()
    return connection.driver_connection


def from_url(url: str) -> db.Database:
    return db.Database(url, default=True)


def from_factory(url: str) -> db.Database:
    return db.Database(engine=lambda _host: create_async_engine(url), host="local", default=True)


def through_psycopg(url: str) -> db.Database:
    return db.Database(url.replace("asyncpg", "psycopg_async"), default=True)


@pytest.fixture
async def locked(postgres: Observer) -> AsyncIterator[None]:
    """The table `load`. Another transaction holds the key of the first row, where the server stops reading."""
    await postgres.execute("CREATE TABLE load (id int PRIMARY KEY, words text)")
    await postgres.execute("BEGIN")
    await postgres.execute("INSERT INTO load VALUES (0, 'held')")
    yield
    await postgres.execute("ROLLBACK")


@pytest.fixture(params=[from_url, from_factory, through_psycopg])
async def database(request: pytest.FixtureRequest, database_url: str) -> AsyncIterator[db.Database]:
    """The default database, opened in one of the ways that there are."""
    opened = request.param(database_url)
    yield opened
    await opened.dispose()


asyncpg_alone = pytest.mark.parametrize("database", [from_url], indirect=True)


async def write(how: Write) -> None:
    async with db.scope():
        await how(await db.session())


async def waits_for_lock(postgres: Observer) -> int:
    return int(
        await postgres.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted")
    )


async def cancelled_write_leaves_nothing(how: Write, postgres: Observer) -> None:
    """Cancel a write that waits for a lock; check that the caller is free at once, and the server soon after."""
    writing = asyncio.create_task(write(how))
    await eventually(lambda: waits_for_lock(postgres), equals=1)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await at_once(writing)
    await at_once(eventually(lambda: waits_for_lock(postgres), equals=0))
    await at_once(eventually(postgres.idle_in_transaction, equals=0))


@pytest.mark.usefixtures("database", "locked")
async def test_cancelling_executemany_frees_the_caller_and_stops_the_server(postgres: Observer) -> None:
    """The caller is free at once, and the server neither waits for the lock nor keeps the transaction open."""
    await cancelled_write_leaves_nothing(execute_many, postgres)


@asyncpg_alone
@pytest.mark.parametrize("how", [driver_execute_many, driver_fetch_many, driver_copy])
@pytest.mark.usefixtures("database", "locked")
async def test_cancelling_the_drivers_own_executemany_stops_the_server(how: Write, postgres: Observer) -> None:
    """As above, through the driver's own connection."""
    await cancelled_write_leaves_nothing(how, postgres)


@asyncpg_alone
@pytest.mark.usefixtures("database", "locked")
async def test_session_works_after_executemany_timed_out(postgres: Observer) -> None:
    """A time limit ends the statement; after a rollback the same session works, on another connection."""
    async with db.scope():
        session = await db.session()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await execute_many(session)
        await at_once(session.rollback())
        assert await at_once(session.scalar(text("SELECT 1"))) == 1
    await at_once(eventually(lambda: waits_for_lock(postgres), equals=0))


@asyncpg_alone
@pytest.mark.usefixtures("database", "locked")
async def test_end_of_a_scope_stops_a_childs_executemany(postgres: Observer) -> None:
    """The end of a scope stops what a child task is writing."""
    with pytest.raises(ZeroDivisionError):
        async with db.scope():
            orphan = asyncio.create_task(execute_many(await db.session()))
            await eventually(lambda: waits_for_lock(postgres), equals=1)
            raise ZeroDivisionError
    with pytest.raises(db.ScopeEndedError):
        await at_once(orphan)
    await at_once(eventually(lambda: waits_for_lock(postgres), equals=0))


@asyncpg_alone
@pytest.mark.usefixtures("database")
async def test_executemany_writes_every_row_or_raises_the_error(postgres: Observer) -> None:
    """Many rows and large ones are written whole; an error in the middle is the error, and the session can go on."""
    await postgres.execute("CREATE TABLE load (id int, words text CHECK (length(words) < 2000000))")
    async with db.scope():
        session = await db.session()
        await execute_many(session)
        with pytest.raises(Exception, match="load_words_check"):
            async with session.begin_nested():
                await session.execute(
                    INSERT, [{"id": number, "words": words * (2 if number == 20 else 1)} for number, words in ROWS]
                )
    assert await postgres.fetchval("SELECT count(*) FROM load WHERE length(words) = 1000000") == len(ROWS)

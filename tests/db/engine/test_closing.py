"""Statements that are sent in one message with the COMMIT, on a real PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Connection, event, make_url, text
from sqlalchemy.exc import DBAPIError, IntegrityError

import db
from db.engine import closing
from db.engine.closing import can_close, closes
from db.transient import Transient, sqlstate, transient
from tests.db.conftest import Count, insert
from tests.proxy import Proxy
from tests.servers import Observer, as_dsn
from tests.stopwatch import Stopwatch
from tests.waiting import eventually

pytestmark = pytest.mark.usefixtures("proxy")

BACKEND = text("SELECT pg_backend_pid()")
KEEP = "INSERT INTO kept (number, words, bytes) VALUES ($1::bigint, $2::text, $3::bytea)"
FAIL = "SELECT CAST('refused:' || $1::text AS int)"


@pytest.fixture
async def proxy(database_url: str, postgres: Observer, table: None) -> AsyncIterator[Proxy]:
    """The default database, through a proxy that sees each message."""
    await postgres.execute("CREATE TABLE kept (number bigint UNIQUE, words text, bytes bytea)")
    async with Proxy(database_url) as proxy:
        database = db.Database(proxy.url, default=True, pre_ping=False)
        yield proxy
        await database.dispose()


def sends(connection: Connection, sql: str, *values: Any) -> bool:
    """Send the statement with the COMMIT if that is possible, else now. Return which."""
    if can_close(connection) and closes(connection, sql, values):
        return True
    connection.exec_driver_sql(sql, values)
    return False


async def close_with(sql: str, *values: Any) -> bool:
    connection = await (await db.session()).connection()
    return bool(await connection.run_sync(sends, sql, *values))


async def prepare(sql: str, *values: Any) -> None:
    """Run the statement in a transaction of its own, which is rolled back: the connection has it prepared then."""
    async with db.scope():
        with pytest.raises(DBAPIError) if sql == FAIL else _nothing():
            await close_with(sql, *values)
        await db.rollback()


class _nothing:  # noqa: N801 - as contextlib's
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


async def test_the_second_transaction_sends_its_closing_statement_in_one_message_with_the_commit(
    proxy: Proxy, postgres: Observer
) -> None:
    """The first one runs it at once, which prepares it."""
    sent: list[bool] = []
    for number in range(3):
        async with db.scope():
            sent.append(await close_with(KEEP, number, "a", b"b"))
    assert sent == [False, True, True]
    assert await postgres.fetchval("SELECT count(*) FROM kept") == 3
    assert proxy.count(r"^SET LOCAL lock_timeout=2000;EXECUTE .*;SET LOCAL lock_timeout TO DEFAULT;COMMIT$") == 2
    assert proxy.count("^COMMIT") == 1


@pytest.mark.parametrize(
    "values",
    [
        (-(2**63), "it's", b"it's"),
        (1, "back\\slash\\'; DROP TABLE kept; --", b"\\x00\x00\xff"),
        (2, "ü€𝄞\n\t$1 %s", b""),
        (3, "", None),
        (None, None, None),
    ],
)
async def test_values_arrive_as_they_were(postgres: Observer, values: Any) -> None:
    """Quotes, backslashes, other alphabets, bytes and NULL."""
    await prepare(KEEP, 9, "", b"")
    async with db.scope():
        assert await close_with(KEEP, *values)
    (row,) = await postgres.fetch("SELECT number, words, bytes FROM kept")
    assert tuple(row) == values


@pytest.mark.parametrize("words", ["nul\0", "surrogate\ud800", "x" * 20_000])
async def test_a_value_without_a_short_literal_is_not_sent_with_the_commit(words: str) -> None:
    """A NUL would end the message, a lone surrogate has no UTF-8, and a long text costs more than a round trip."""
    await prepare(KEEP, 9, "", b"")
    async with db.scope():
        connection = await (await db.session()).connection()
        assert await connection.run_sync(can_close)
        assert not await connection.run_sync(closes, KEEP, [1, words, b""])


async def test_a_closing_statement_that_fails_rolls_the_transaction_back(rows: Count, postgres: Observer) -> None:
    """The server skips the COMMIT. The connection is whole, and serves the next transaction."""
    await prepare(FAIL, "a")
    with pytest.raises(DBAPIError, match="refused:b"):
        async with db.scope():
            backend = await (await db.session()).scalar(BACKEND)
            await insert("lost")
            assert await close_with(FAIL, "b")
    assert await rows() == 0
    assert await postgres.idle_in_transaction() == 0
    async with db.scope():
        await insert("kept")
        assert await (await db.session()).scalar(BACKEND) == backend
    assert await rows() == 1


async def test_a_deferred_constraint_that_fails_in_the_commit_is_its_error(rows: Count, postgres: Observer) -> None:
    """The closing statement is rolled back with the rest."""
    await prepare(KEEP, 9, "", b"")
    with pytest.raises(IntegrityError, match="foreign key"):
        async with db.scope():
            await insert("lost")
            await (await db.session()).execute(text("INSERT INTO reply VALUES (77)"))
            assert await close_with(KEEP, 1, "a", b"")
    assert await rows() == await postgres.fetchval("SELECT count(*) FROM kept") == 0
    async with db.scope():
        await insert("kept")
    assert await rows() == await postgres.backends() == 1


async def test_a_rollback_drops_the_closing_statements(proxy: Proxy, postgres: Observer) -> None:
    """The session goes on, and its next COMMIT is a plain one."""
    await prepare(KEEP, 9, "", b"")
    async with db.scope():
        assert await close_with(KEEP, 1, "a", b"")
        await db.rollback()
        await insert("later")
    assert await postgres.fetchval("SELECT count(*) FROM kept") == 0
    assert proxy.count("EXECUTE") == 0


async def test_a_rollback_on_the_connection_itself_drops_them_too(proxy: Proxy, postgres: Observer) -> None:
    """The connection goes on with another transaction, without a way through the pool."""
    await prepare(KEEP, 9, "", b"")
    async with db.scope():
        engine: Any = (await db.session()).bind
    async with engine.connect() as connection:
        transaction = await connection.begin()
        assert await connection.run_sync(sends, KEEP, 1, "a", b"")
        await transaction.rollback()
        async with connection.begin():
            await connection.execute(text("SELECT 1"))
    assert await postgres.fetchval("SELECT count(*) FROM kept") == 0
    assert proxy.count("EXECUTE") == 0


async def test_a_closing_statement_waits_for_a_lock_for_a_limited_time(
    postgres: Observer, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the server rolls the transaction back with its code for a lock that was not available."""
    monkeypatch.setattr(closing, "LOCK_TIMEOUT", 100)
    await prepare(KEEP, 9, "", b"")
    blocker = await asyncpg.connect(as_dsn(make_url(database_url)))
    try:
        async with blocker.transaction():
            await blocker.execute("INSERT INTO kept VALUES (1)")
            with pytest.raises(DBAPIError) as failed:
                async with db.scope():
                    assert await close_with(KEEP, 1, "a", b"")
            assert sqlstate(failed.value) == "55P03"
            assert transient(failed.value) is Transient.CONFLICT
    finally:
        await blocker.close()


async def test_the_limit_on_a_lock_does_not_apply_to_the_commit_itself(
    postgres: Observer, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deferred foreign key waits for the row that it refers to for as long as it has to."""
    monkeypatch.setattr(closing, "LOCK_TIMEOUT", 50)
    await postgres.execute("INSERT INTO note (id, words) VALUES (5, 'referred to')")
    await prepare(KEEP, 9, "", b"")
    blocker = await asyncpg.connect(as_dsn(make_url(database_url)))
    watch = Stopwatch()
    try:
        locking = blocker.transaction()
        await locking.start()
        await blocker.execute("SELECT * FROM note WHERE id = 5 FOR UPDATE")

        async def work() -> None:
            async with db.scope():
                await (await db.session()).execute(text("INSERT INTO reply VALUES (5)"))
                assert await close_with(KEEP, 1, "a", b"")

        working = asyncio.create_task(work())
        await eventually(lambda: _waiters(postgres), equals=1)
        await eventually(lambda: watch.seconds_running > 0.5)
        assert not working.done()
        await locking.rollback()
        await working
    finally:
        await blocker.close()
    assert await postgres.fetchval("SELECT count(*) FROM kept") == 1


async def _waiters(postgres: Observer) -> int:
    return int(await postgres.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_connection_lost_in_the_message_is_a_lost_one(proxy: Proxy, postgres: Observer, when: Any) -> None:
    """Whether the server has committed is not known here. The next transaction has another connection."""
    await prepare(KEEP, 9, "", b"")
    trap = proxy.drop_on("COMMIT$", when=when)
    with pytest.raises(Exception) as lost:  # noqa: PT011 - the claim is what kind it is
        async with db.scope():
            assert await close_with(KEEP, 1, "a", b"")
    assert trap.sprung
    assert transient(lost.value) is Transient.LOST
    assert await postgres.fetchval("SELECT count(*) FROM kept") == (1 if when == "after" else 0)
    async with db.scope():
        await insert("next")


@pytest.mark.parametrize(
    "statement",
    [
        "SET LOCAL standard_conforming_strings = off",
        "SET statement_timeout = 7000",
        "SET LOCAL client_encoding = 'LATIN1'",
        "PREPARE mine AS SELECT 1",
    ],
)
async def test_a_changed_session_sends_the_statement_on_its_own(statement: str) -> None:
    """A literal, or the prepared statement itself, could mean something else."""
    await prepare(KEEP, 9, "", b"")
    async with db.scope():
        await (await db.session()).execute(text(statement))
        assert not await close_with(KEEP, 1, "a", b"")


async def test_a_connection_whose_driver_was_used_directly_sends_the_statement_on_its_own() -> None:
    """No statement of SQLAlchemy's tells what happened there, DISCARD ALL perhaps."""
    await prepare(KEEP, 9, "", b"")
    async with db.scope():
        connection = await (await db.session()).connection()
        raw: Any = await connection.get_raw_connection()
        assert await raw.driver_connection.fetchval("SELECT 1") == 1
        assert not await connection.run_sync(can_close)


@pytest.mark.parametrize(
    "listener", ["before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute"]
)
async def test_with_a_listener_for_statements_the_statement_goes_on_its_own(listener: str) -> None:
    """The listener would not hear of it in the COMMIT."""
    await prepare(KEEP, 9, "", b"")
    async with db.scope():
        connection = await (await db.session()).connection()
        event.listen(connection.sync_connection, listener, lambda *_: None)
        assert not await connection.run_sync(can_close)


@pytest.mark.parametrize("option", ["pooler", "AUTOCOMMIT"])
async def test_behind_a_pooler_and_in_autocommit_the_statement_goes_on_its_own(
    postgres: Observer, database_url: str, option: str
) -> None:
    """A pooler gives the next transaction another connection, and AUTOCOMMIT has no COMMIT."""
    database = db.Database[db.AsyncSession](database_url, default=True, pooler=option == "pooler")
    options = {"isolation_level": option} if option == "AUTOCOMMIT" else {}
    try:
        for number in range(2):
            async with db.scope():
                connection = await (await db.session()).connection(execution_options=options)
                assert not await connection.run_sync(sends, KEEP, number, "a", b"")
        assert await postgres.fetchval("SELECT count(*) FROM kept") == 2
    finally:
        await database.dispose()


async def test_with_psycopg_the_statement_goes_on_its_own(sync_database: db.Database[db.Session]) -> None:
    """Only asyncpg sends several statements with one prepared before."""
    async with db.scope():
        session = await db.session(sync_database)
        assert not await asyncio.to_thread(lambda: can_close(session.connection()))

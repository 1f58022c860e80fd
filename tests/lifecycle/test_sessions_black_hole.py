"""A database that stops answering without closing its connections, at every moment of a scope."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import text

import db
from db.transient import Transient, transient
from tests.proxy import Proxy
from tests.servers import Observer
from tests.stopwatch import Stopwatch
from tests.waiting import AT_ONCE, eventually

# Seconds: the limits of the database under test, and so what a statement may take in all.
CONNECT, STATEMENT = 1.0, 1.5
TIMEOUT = CONNECT + STATEMENT

INSERT = text("INSERT INTO note (words) VALUES ('a')")


@pytest.fixture
async def proxy(database_url: str, postgres: Observer) -> AsyncIterator[Proxy]:
    await postgres.execute("CREATE TABLE note (id serial PRIMARY KEY, words text)")
    async with Proxy(database_url) as proxy:
        yield proxy
        await proxy.resume()


@pytest.fixture
async def database(proxy: Proxy) -> AsyncIterator[db.Database]:
    """The default database, with one connection: a slot that is not free shows."""
    database = db.Database(
        proxy.url, default=True, pool_size=1, pool_timeout=1, connect_timeout=CONNECT, statement_timeout=STATEMENT
    )
    yield database
    db.set_default_database(None)
    await database.dispose()


async def insert() -> None:
    await (await db.session()).execute(INSERT)


async def works_again(proxy: Proxy, postgres: Observer) -> None:
    """The pool's one slot is free, and no backend is left in a transaction."""
    await proxy.resume()
    await db.isolated(insert)
    await eventually(postgres.idle_in_transaction, equals=0)


async def test_an_unanswered_statement_fails_as_a_lost_connection(
    database: db.Database, proxy: Proxy, postgres: Observer
) -> None:
    """A statement that is not answered fails after the limits as a lost connection, and the slot is free."""
    watch = Stopwatch()
    with pytest.raises(db.DatabaseUnreachableError, match="no answer from PostgreSQL") as lost:
        async with db.scope():
            await insert()
            proxy.blackhole()
            watch = Stopwatch()
            await insert()
    assert watch.seconds >= TIMEOUT
    assert watch.seconds_running < TIMEOUT + AT_ONCE
    assert transient(lost.value) is Transient.LOST
    await works_again(proxy, postgres)


async def test_an_unanswered_rollback_is_given_up_and_its_cause_is_raised(
    database: db.Database, proxy: Proxy, postgres: Observer, caplog: pytest.LogCaptureFixture
) -> None:
    """A ROLLBACK that is not answered is given up with its connection, and the error that caused it comes out."""
    watch = Stopwatch()
    with caplog.at_level(logging.WARNING, "db"), pytest.raises(ZeroDivisionError):
        async with db.scope():
            await insert()
            proxy.blackhole()
            watch = Stopwatch()
            raise ZeroDivisionError
    assert watch.seconds_running < TIMEOUT + AT_ONCE
    assert "its connection is discarded" in caplog.text
    await works_again(proxy, postgres)
    assert await postgres.fetchval("SELECT count(*) FROM note") == 1


async def test_a_rollback_waits_for_the_connect_timeout_and_not_the_statement_timeout(proxy: Proxy) -> None:
    """A ROLLBACK gets the time to connect, and not that of a statement, which may be an hour."""
    patient = db.Database(proxy.url, default=True, connect_timeout=CONNECT, statement_timeout=3600)
    watch = Stopwatch()
    with pytest.raises(ZeroDivisionError):
        async with db.scope():
            await insert()
            proxy.blackhole()
            watch = Stopwatch()
            raise ZeroDivisionError
    assert watch.seconds_running < CONNECT + AT_ONCE
    db.set_default_database(None)
    await patient.dispose()


async def test_an_unanswered_commit_fails_as_a_lost_connection(
    database: db.Database, proxy: Proxy, postgres: Observer
) -> None:
    """A COMMIT that is not answered fails after the limits as a lost connection: whether it committed is not known."""
    watch = Stopwatch()
    with pytest.raises(db.DatabaseUnreachableError) as lost:
        async with db.scope():
            await insert()
            proxy.blackhole()
            watch = Stopwatch()
    assert watch.seconds >= TIMEOUT
    assert watch.seconds_running < TIMEOUT + AT_ONCE
    assert transient(lost.value) is Transient.LOST
    await works_again(proxy, postgres)


async def test_cancelling_an_unanswered_commit_neither_delays_nor_hides_the_error(
    database: db.Database, proxy: Proxy, postgres: Observer
) -> None:
    """The scope ends after the same limits."""

    async def work() -> None:
        async with db.scope():
            await insert()
            proxy.blackhole()

    task = asyncio.create_task(work())
    await eventually(lambda: proxy.count("^INSERT"), equals=1)
    watch = Stopwatch()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0.01)
    with pytest.raises((db.DatabaseUnreachableError, asyncio.CancelledError)):
        await task
    assert watch.seconds_running < TIMEOUT + AT_ONCE
    await works_again(proxy, postgres)


async def test_an_unanswered_statement_can_be_cancelled_at_once(
    database: db.Database, proxy: Proxy, postgres: Observer
) -> None:
    """A statement that is not answered can be cancelled at once, and the slot is free."""

    async def work() -> None:
        async with db.scope():
            await insert()
            proxy.blackhole()
            await insert()

    task = asyncio.create_task(work())
    await eventually(lambda: proxy.count("^INSERT"), equals=1)
    await asyncio.sleep(0.05)
    watch = Stopwatch()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert watch.seconds_running < AT_ONCE
    await works_again(proxy, postgres)


async def test_an_unanswered_ping_is_given_up_after_the_connect_timeout(
    database: db.Database, proxy: Proxy, postgres: Observer
) -> None:
    """A pooled connection that is not answered is given up after the connect timeout, and so is its successor."""
    await db.isolated(insert)
    proxy.blackhole()
    watch = Stopwatch()
    with pytest.raises(db.DatabaseUnreachableError) as lost:
        await db.isolated(insert)
    assert watch.seconds_running < 2 * CONNECT + AT_ONCE
    assert transient(lost.value) is Transient.LOST
    await works_again(proxy, postgres)


async def test_a_scope_recovers_from_one_dead_pooled_connection(
    database: db.Database, proxy: Proxy, postgres: Observer
) -> None:
    """If only the pooled connection is dead, as behind a forgetful firewall, the scope works after a wait."""
    await db.isolated(insert)
    proxy.blackhole()
    asyncio.get_running_loop().call_later(CONNECT * 1.2, lambda: asyncio.ensure_future(proxy.resume()))
    await db.isolated(insert)
    assert await postgres.fetchval("SELECT count(*) FROM note") == 2


async def test_an_unanswered_connect_fails_after_the_connect_timeout(
    database: db.Database, proxy: Proxy, postgres: Observer
) -> None:
    """A connection that is accepted and then not answered fails after the connect timeout."""
    proxy.blackhole()
    watch = Stopwatch()
    with pytest.raises(db.DatabaseUnreachableError) as lost:
        await db.isolated(insert)
    assert watch.seconds_running < CONNECT + AT_ONCE
    assert transient(lost.value) is Transient.LOST
    await works_again(proxy, postgres)


async def test_a_failing_scope_does_not_wait_for_the_statement_of_its_child(
    database: db.Database, proxy: Proxy, postgres: Observer
) -> None:
    """A scope that fails while a child waits for the dead database ends at once, and the child gets a named error."""
    watch = Stopwatch()
    with pytest.raises(ZeroDivisionError):
        async with db.scope():
            await insert()
            proxy.blackhole()
            child = asyncio.create_task(insert())
            await asyncio.sleep(0.05)
            watch = Stopwatch()
            raise ZeroDivisionError
    assert watch.seconds_running < AT_ONCE
    with pytest.raises(db.ScopeEndedError):
        await child
    await works_again(proxy, postgres)


async def test_dispose_does_not_wait_for_an_unanswered_goodbye(database: db.Database, proxy: Proxy) -> None:
    """`dispose` does not wait for goodbyes that are not answered."""
    await db.isolated(insert)
    proxy.blackhole()
    watch = Stopwatch()
    await database.dispose()
    assert watch.seconds_running < AT_ONCE

"""How long a statement on the ledger's table may take before it is taken for blocked by a lock."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
from sqlalchemy import make_url

import db
from tests.pooler import Pooler
from tests.servers import as_url
from worker.errors import LedgerBusyError
from worker.ledger import FinalRow, Ledger, State
from worker.ledger.lock_wait import LockWait

SMALL = FinalRow("j1", 1_000, "send", "arq:queue", State.DONE, result=b"7")
LARGE = SMALL._replace(result=b"7" * 1024 * 1024)


@pytest.fixture
async def sqlite(sqlite_url: str) -> AsyncIterator[None]:
    """The default database on SQLite, which does not say who waits for a lock."""
    database = db.Database(sqlite_url, default=True)
    yield
    await database.dispose()
    db.set_default_database(None)


async def limit(row: FinalRow, writing: Coroutine[Any, Any, str]) -> str:
    """Limit `writing`, as if it were a statement of the default database's."""
    async with db.scope():
        session = await db.session()
        wait = LockWait(session, "tandem_jobs", [row])
        wait.connection = (await session.connection()).sync_connection
        return await wait.limit(writing)


async def given_up_after(row: FinalRow) -> float:
    """Seconds after which a statement that never ends is given up."""
    began = time.monotonic()
    with pytest.raises(LedgerBusyError, match="another transaction holds the row of this job in tandem_jobs"):
        await limit(row, asyncio.sleep(3600, ""))
    return time.monotonic() - began


async def mark_done() -> None:
    await Ledger().mark_done(await db.session(), SMALL)


@pytest.mark.usefixtures("sqlite")
class TestWithoutAServerToAsk:
    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 0.1)
        monkeypatch.setattr("worker.ledger.lock_wait._SLOW_NETWORK", 1024 * 1024)

    async def test_a_small_statement_is_given_up_after_the_lock_wait(self) -> None:
        """Its few bytes cannot take long."""
        assert await given_up_after(SMALL) < 0.9

    async def test_a_large_statement_gets_the_time_that_its_bytes_take_on_a_slow_network(self) -> None:
        """One megabyte takes a second."""
        assert await given_up_after(LARGE) > 1.0

    async def test_a_statement_that_ends_in_time_leaves_no_task_behind(self) -> None:
        """Its result is returned."""
        assert await limit(LARGE, asyncio.sleep(0.3, "written")) == "written"
        assert not [task for task in asyncio.all_tasks() if "_BlockedDeadline" in repr(task)]


async def test_behind_a_pooler_a_statement_on_a_locked_row_is_given_up_by_the_time_of_its_bytes(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pooler makes up the process ids, so the server cannot be asked about them."""
    monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 0.5)
    async with Pooler(database_url, size=3) as pooler:
        database = db.Database(as_url(make_url(pooler.url), "asyncpg"), pooler=True, default=True)
        async with db.scope():
            await mark_done()
            with pytest.raises(LedgerBusyError):
                await db.isolated(mark_done)
        await database.dispose()
        db.set_default_database(None)


async def test_waiting_for_a_connection_of_the_pool_is_given_up_as_a_busy_ledger(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error comes before the pool's own timeout, and the job can run again."""
    monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 0.1)
    database = db.Database(database_url, default=True, pool_size=1)
    async with db.scope():
        await (await db.session()).connection()
        with pytest.raises(LedgerBusyError):
            await db.isolated(mark_done)
    await database.dispose()
    db.set_default_database(None)

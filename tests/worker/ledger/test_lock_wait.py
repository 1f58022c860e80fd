"""How long a statement on the ledger's table may take where no server says what it waits for."""

import asyncio
import time

import pytest

import db
from worker.errors import LedgerBusyError
from worker.ledger import Ending, State
from worker.ledger.lock_wait import LockWait

SMALL = Ending("j1", 1_000, "send", "arq:queue", State.DONE, result=b"7")
LARGE = SMALL._replace(result=b"7" * 1024 * 1024)


async def limited(ending: Ending) -> float:
    """Seconds after which a statement that never ends is given up."""
    async with db.scope():
        session = await db.session()
        began = time.monotonic()
        with pytest.raises(LedgerBusyError, match="another transaction holds the row of this job in tandem_jobs"):
            await LockWait(session, "tandem_jobs", [ending]).limit(asyncio.sleep(3600))
        return time.monotonic() - began


@pytest.mark.usefixtures("postgres_database")
class TestNobodyToAsk:
    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 0.1)
        monkeypatch.setattr("worker.ledger.lock_wait._SLOW_NETWORK", 1024 * 1024)

    async def test_a_small_statement(self) -> None:
        """It has no bytes that could take long: it is given up when the server would have been asked."""
        assert await limited(SMALL) < 0.9

    async def test_a_large_statement(self) -> None:
        """It gets the time that its bytes take on a slow network."""
        assert await limited(LARGE) > 1.0

    async def test_what_ends_in_time(self) -> None:
        """A statement that ends first leaves nothing behind."""
        async with db.scope():
            wait = LockWait(await db.session(), "tandem_jobs", [LARGE])
            assert await wait.limit(asyncio.sleep(0.3, "written")) == "written"
        assert asyncio.all_tasks() == {asyncio.current_task()}

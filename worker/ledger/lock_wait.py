"""Waiting for a row that another attempt's transaction holds, but not as long as the server would."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from db import Session
from worker.deadline import Deadline
from worker.errors import LedgerBusyError
from worker.ledger.execution import AnySession

T = TypeVar("T")

_LOCK_WAIT = 2.0  # seconds that another attempt's transaction may keep a row to itself


async def within_lock_wait(session: AnySession, writing: Coroutine[Any, Any, T], name: str) -> T:
    """Run a statement on the ledger's table `name`.

    Raises:
        LedgerBusyError: it has waited too long.
    """
    if isinstance(session, Session):
        return await _evicting(session, writing, _busy(name))
    deadline = Deadline(_LOCK_WAIT)
    try:
        with deadline:
            return await writing
    except TimeoutError:
        if deadline.expired:
            raise _busy(name) from None
        raise


def _busy(name: str) -> LedgerBusyError:
    return LedgerBusyError(f"another attempt of this job holds its row in {name}")


async def _evicting(session: Session, writing: Coroutine[Any, Any, T], busy: LedgerBusyError) -> T:
    """A thread cannot be cancelled: its statement is ended on the server."""
    statement = asyncio.ensure_future(writing)
    await asyncio.wait({statement}, timeout=_LOCK_WAIT)
    if not statement.done():
        await session.use.evict(busy)
    return await statement

"""Waiting for a row that another attempt's transaction holds, but not as long as the server would."""

import asyncio
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

from db import Session
from worker.deadline import Deadline
from worker.errors import LedgerBusyError
from worker.ledger.execution import AnySession

T = TypeVar("T")

_LOCK_WAIT = 2.0  # seconds that another attempt's transaction may keep a row to itself


class LockWait(Deadline):
    """Ends the statement inside when it has waited too long; the block then raises `LedgerBusyError`.

    Args:
        name: of the ledger's table.
    """

    __slots__ = ("_table",)

    def __init__(self, name: str) -> None:
        super().__init__(_LOCK_WAIT)
        self._table = name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            super().__exit__(kind, error, traceback)
        except TimeoutError:
            raise _busy(self._table) from None


async def within_lock_wait(session: AnySession, writing: Coroutine[Any, Any, T], name: str) -> T:
    """The same for a statement in either kind of session.

    Raises:
        LedgerBusyError: it has waited too long.
    """
    if isinstance(session, Session):
        return await _evicting(session, writing, name)
    with LockWait(name):
        return await writing


async def _evicting(session: Session, writing: Coroutine[Any, Any, T], name: str) -> T:
    """A thread cannot be cancelled: its statement is ended on the server."""
    statement = asyncio.ensure_future(writing)
    await asyncio.wait({statement}, timeout=_LOCK_WAIT)
    if not statement.done():
        await session.use.evict(_busy(name))
    return await statement


def _busy(name: str) -> LedgerBusyError:
    return LedgerBusyError(f"another attempt of this job holds its row in {name}")

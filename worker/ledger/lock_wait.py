"""Giving up a statement on the ledger's table that waits for another transaction's lock, long before the server would.

1. A statement that takes long is asked about on another connection. Only one that waits for a lock is given up: one
   that sends a large result over a slow network, or waits for a busy disk, is not.
2. Where the server cannot tell, the statement gets as long as its own bytes take on a slow network. SQLite has nobody
   to ask, and a pooler makes up the process ids that it gives to its clients.

A statement that is quick costs no round trip: the server is asked about slow ones alone.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from sqlalchemy import BigInteger, Connection, Engine, bindparam, text
from sqlalchemy.ext.asyncio import AsyncEngine

from db import Session
from db.aio.threads import in_thread
from db.engine.reset import driver_connection_of
from worker.aio.cancel_tasks import cancel_tasks
from worker.aio.deadline import Deadline
from worker.errors import LedgerBusyError
from worker.ledger.execute import AnySession
from worker.ledger.rows import FinalRow

T = TypeVar("T")

_LOCK_WAIT = 2.0  # seconds that a statement may take before the server is asked about it, again and again
_SLOW_NETWORK = 256 * 1024  # bytes a second

_IS_BLOCKED = text(
    "SELECT cardinality(pg_blocking_pids(pid)) > 0 FROM pg_stat_activity "
    "WHERE pid = :pid AND datname = current_database()"
).bindparams(bindparam("pid", type_=BigInteger))


class LockWait:
    """How long one statement may wait for a lock.

    Args:
        name: of the ledger's table.
        endings: what the statement writes.
    """

    connection: Connection | None = None
    """What the statement runs on; whoever runs it says so."""

    def __init__(self, session: AnySession, name: str, endings: Sequence[FinalRow]) -> None:
        self._session = session
        self._name = name
        self._endings = endings

    async def limit(self, writing: Coroutine[Any, Any, T]) -> T:
        """Run the statement.

        Raises:
            LedgerBusyError: it has waited too long for a lock.
        """
        if isinstance(self._session, Session):
            return await self._in_thread(self._session, writing)
        deadline = _UnlessBlocked(self)
        try:
            with deadline:
                return await writing
        except TimeoutError:
            if deadline.expired:
                raise self._busy() from None
            raise
        finally:
            if deadline.question is not None:
                await cancel_tasks([deadline.question])

    async def until_hopeless(self) -> None:
        """Return once a statement that has taken `_LOCK_WAIT` is to be given up."""
        while True:
            is_blocked = await self._is_blocked()
            if is_blocked:
                return
            if is_blocked is None:
                await asyncio.sleep(sum(ending.size for ending in self._endings) / _SLOW_NETWORK)
                return
            await asyncio.sleep(_LOCK_WAIT)

    async def _in_thread(self, session: Session, writing: Coroutine[Any, Any, T]) -> T:
        """A thread cannot be cancelled: its statement is ended on the server."""
        statement = asyncio.ensure_future(writing)
        await asyncio.wait({statement}, timeout=_LOCK_WAIT)
        if not statement.done():
            question = asyncio.ensure_future(self.until_hopeless())
            try:
                await asyncio.wait({statement, question}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel_tasks([question])
            if not statement.done():
                await session.access.cancel_running(self._busy())
        return await statement

    async def _is_blocked(self) -> bool | None:
        """Whether the server says that the statement waits for a lock; None where it cannot be asked."""
        if self.connection is None:  # the pool has none yet: whoever waits for the ledger may come again
            return None
        try:
            async with asyncio.timeout(_LOCK_WAIT):
                return await _ask(self.connection)
        except Exception:  # noqa: BLE001 - whatever stands in the way, there is no answer
            return None

    def _busy(self) -> LedgerBusyError:
        return LedgerBusyError(f"another transaction holds the row of this job in {self._name}, or the whole table")


class _UnlessBlocked(Deadline):
    """Cancels a statement that has taken `_LOCK_WAIT`, but only once it is hopeless."""

    __slots__ = ("_wait", "question")

    def __init__(self, wait: LockWait) -> None:
        super().__init__(_LOCK_WAIT)
        self._wait = wait
        self.question: asyncio.Task[None] | None = None

    def _expire(self) -> None:
        self.question = asyncio.get_running_loop().create_task(self._expire_when_hopeless())

    async def _expire_when_hopeless(self) -> None:
        await self._wait.until_hopeless()
        super()._expire()


async def _ask(connection: Connection) -> bool | None:
    """Ask on another connection of the same engine."""
    pid = _process_id(connection)
    if pid is None:
        return None
    if not connection.dialect.is_async:
        return await in_thread(_ask_here, connection.engine, pid)
    async with AsyncEngine(connection.engine).connect() as other:
        is_blocked: bool | None = await other.scalar(_IS_BLOCKED, {"pid": pid})
    return is_blocked


def _ask_here(engine: Engine, pid: int) -> bool | None:
    with engine.connect() as other:
        is_blocked: bool | None = other.scalar(_IS_BLOCKED, {"pid": pid})
    return is_blocked


def _process_id(connection: Connection) -> int | None:
    """What the server calls the connection, by its driver; None where there is no such number."""
    driver_connection: Any = driver_connection_of(connection.connection.dbapi_connection)
    if hasattr(driver_connection, "get_server_pid"):  # asyncpg
        return int(driver_connection.get_server_pid())
    return getattr(getattr(driver_connection, "info", None), "backend_pid", None)  # psycopg

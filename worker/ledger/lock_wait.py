"""Cancelling a statement on the ledger's table that waits for another transaction's lock, long before the server would.

1. If a statement takes long, the server is asked about it on another connection. Only a statement that waits for a
   lock is cancelled. A statement that sends a large result over a slow network, or waits for a busy disk, goes on.
2. If the server cannot say, the statement may take as long as its bytes need on a slow network. That is so on SQLite,
   and behind a pooler, which gives its clients made-up process ids.

A fast statement costs no extra round trip.
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

_LOCK_WAIT = 2.0  # seconds until the server is asked about a statement, and from each such query to the next
_SLOW_NETWORK = 256 * 1024  # bytes a second

_IS_BLOCKED = text(
    "SELECT cardinality(pg_blocking_pids(pid)) > 0 FROM pg_stat_activity "
    "WHERE pid = :pid AND datname = current_database()"
).bindparams(bindparam("pid", type_=BigInteger))


class LockWait:
    """The lock wait of one statement, limited in time.

    Args:
        name: the name of the ledger's table.
        rows: the rows that the statement writes.
    """

    connection: Connection | None = None
    """The connection of the statement. The code that runs the statement sets it."""

    def __init__(self, session: AnySession, name: str, rows: Sequence[FinalRow]) -> None:
        self._session = session
        self._name = name
        self._rows = rows

    async def limit(self, writing: Coroutine[Any, Any, T]) -> T:
        """Run the statement.

        Raises:
            LedgerBusyError: the statement has waited too long for a lock.
        """
        if isinstance(self._session, Session):
            return await self._in_thread(self._session, writing)
        deadline = _BlockedDeadline(self)
        try:
            with deadline:
                return await writing
        except TimeoutError:
            if deadline.expired:
                raise self._busy() from None
            raise
        finally:
            if deadline.check is not None:
                await cancel_tasks([deadline.check])

    async def until_blocked(self) -> None:
        """Return when a statement that has taken `_LOCK_WAIT` already is to be cancelled."""
        while True:
            is_blocked = await self._is_blocked()
            if is_blocked:
                return
            if is_blocked is None:
                await asyncio.sleep(sum(row.size for row in self._rows) / _SLOW_NETWORK)
                return
            await asyncio.sleep(_LOCK_WAIT)

    async def _in_thread(self, session: Session, writing: Coroutine[Any, Any, T]) -> T:
        """Do as `limit`, for a synchronous session. A thread cannot be cancelled, so the server ends its statement."""
        statement = asyncio.ensure_future(writing)
        await asyncio.wait({statement}, timeout=_LOCK_WAIT)
        if not statement.done():
            check = asyncio.ensure_future(self.until_blocked())
            try:
                await asyncio.wait({statement, check}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel_tasks([check])
            if not statement.done():
                await session.access.cancel_running(self._busy())
        return await statement

    async def _is_blocked(self) -> bool | None:
        """Whether the server says that the statement waits for a lock. None if it cannot say."""
        if self.connection is None:  # the pool has not given one yet
            return None
        try:
            async with asyncio.timeout(_LOCK_WAIT):
                return await _query_is_blocked(self.connection)
        except Exception:  # noqa: BLE001 - any error means no answer
            return None

    def _busy(self) -> LedgerBusyError:
        return LedgerBusyError(f"another transaction holds the row of this job in {self._name}, or the whole table")


class _BlockedDeadline(Deadline):
    """Cancel a statement that has taken `_LOCK_WAIT`, but only once it is known to be blocked."""

    __slots__ = ("_wait", "check")

    def __init__(self, wait: LockWait) -> None:
        super().__init__(_LOCK_WAIT)
        self._wait = wait
        self.check: asyncio.Task[None] | None = None

    def _expire(self) -> None:
        self.check = asyncio.get_running_loop().create_task(self._expire_when_blocked())

    async def _expire_when_blocked(self) -> None:
        await self._wait.until_blocked()
        super()._expire()


async def _query_is_blocked(connection: Connection) -> bool | None:
    """Ask the server, on another connection of the engine."""
    pid = _process_id(connection)
    if pid is None:
        return None
    if not connection.dialect.is_async:
        return await in_thread(_query_is_blocked_sync, connection.engine, pid)
    async with AsyncEngine(connection.engine).connect() as other:
        is_blocked: bool | None = await other.scalar(_IS_BLOCKED, {"pid": pid})
    return is_blocked


def _query_is_blocked_sync(engine: Engine, pid: int) -> bool | None:
    with engine.connect() as other:
        is_blocked: bool | None = other.scalar(_IS_BLOCKED, {"pid": pid})
    return is_blocked


def _process_id(connection: Connection) -> int | None:
    """The server's process id of the connection, from its driver. None if there is none."""
    driver_connection: Any = driver_connection_of(connection.connection.dbapi_connection)
    if hasattr(driver_connection, "get_server_pid"):  # asyncpg
        return int(driver_connection.get_server_pid())
    return getattr(getattr(driver_connection, "info", None), "backend_pid", None)  # psycopg

"""One open engine of a database, leased by the sessions that use it.

1. It belongs to the event loop and the process that opened it.
2. It is disposed when it has been retired (another host took its place) and the last session has given it back.
3. Its connections are closed in the background and within a time limit, so that neither a second cancellation can
   interrupt the request that stops a statement on the server, nor a dead server keep the closing waiting.
"""

import asyncio
import os
from contextlib import suppress
from typing import Any

from sqlalchemy import Engine, Pool
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import sessionmaker

from db.errors import WrongLoopError
from db.threads import in_thread

_CLOSE_TIMEOUT = 2.0  # seconds for a graceful goodbye; asyncpg's dialect gives as much

# Connections of the process that this one was forked from. They are never closed here, not even by the garbage
# collector: it would take them out of the epoll set that both processes share.
_inherited: list[Pool] = []


class OpenEngine:
    """An engine with its sessionmaker, and the count of sessions that hold it."""

    def __init__(
        self,
        engine: AsyncEngine | Engine,
        maker: async_sessionmaker[Any] | sessionmaker[Any],
        *,
        owned: bool,
    ) -> None:
        self.engine = engine
        self.maker = maker
        self._owned = owned
        self._loop = asyncio.get_running_loop()
        self._pid = os.getpid()
        self._leases = 0
        self._retired = False
        self._closing: set[asyncio.Task[None]] = set()
        if isinstance(engine, AsyncEngine) and owned:
            self._close_connections_in_background(engine)

    @property
    def of_this_process(self) -> bool:
        return self._pid == os.getpid()

    def check_loop(self, name: str) -> None:
        """Raise :class:`WrongLoopError` on any loop but the one that opened the engine."""
        if isinstance(self.engine, AsyncEngine) and self._loop is not asyncio.get_running_loop():
            raise WrongLoopError(
                f"the engine of {name} belongs to another event loop: call 'await database.dispose()' on that loop "
                "before it ends (asyncio.run makes a new loop each time), or use one Database a loop"
            )

    def check_retirable(self, name: str) -> None:
        """Raise :class:`WrongLoopError` if another loop is still there that could close the connections."""
        if not self._loop.is_closed():
            self.check_loop(name)

    def lease(self) -> None:
        self._leases += 1

    async def give_back(self) -> None:
        self._leases -= 1
        if self._retired and self._leases == 0:
            await self._dispose()

    async def retire(self) -> None:
        """Dispose of the engine as soon as no session uses it."""
        self._retired = True
        if self._leases == 0:
            await self._dispose()

    def forget(self) -> None:
        """Drop the pool and leave the connections alone: they belong to the process this one was forked from."""
        _inherited.append(self._sync_engine.pool)
        self._sync_engine.dispose(close=False)

    @property
    def _sync_engine(self) -> Engine:
        return self.engine.sync_engine if isinstance(self.engine, AsyncEngine) else self.engine

    async def _dispose(self) -> None:
        if not self._owned:
            return
        if not isinstance(self.engine, AsyncEngine):
            await in_thread(self.engine.dispose)
        elif self._loop.is_closed():
            self.engine.sync_engine.dispose(close=False)  # nobody can say goodbye any more
        else:
            await self.engine.dispose()
        if self._closing:
            await asyncio.wait(self._closing)

    def _close_connections_in_background(self, engine: AsyncEngine) -> None:
        def close(dbapi_connection: Any) -> None:
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # the garbage collector, after the loop
                dbapi_connection.terminate()
                return
            closing = loop.create_task(_close(dbapi_connection.driver_connection))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

        # Public methods of the dialect; there are no events for them.
        dialect = engine.sync_engine.dialect
        dialect.do_close = close  # type: ignore[method-assign]
        dialect.do_terminate = close  # type: ignore[method-assign]


async def _close(driver_connection: Any) -> None:
    """Stop what the connection is doing and close it, within `_CLOSE_TIMEOUT`."""
    if hasattr(driver_connection, "interrupt"):  # SQLite: the statement runs in a thread, and holds the write lock
        with suppress(ValueError):  # closed already
            await driver_connection.interrupt()
        # The lock would live on with a cursor in somebody's traceback.
        with suppress(Exception):
            await driver_connection.rollback()
        await driver_connection.close()
        return
    try:
        async with asyncio.timeout(_CLOSE_TIMEOUT):
            await driver_connection.close()
    except BaseException as error:
        driver_connection.terminate()
        if not isinstance(error, Exception):
            raise

"""``LeasedEngine``: one open engine of a database, leased by the sessions that use it.

1. The engine belongs to the event loop and the process that opened it. The end of the loop closes its connections.
2. A retired engine (another host took its place) is disposed when the last session has released it.
3. Connections are closed in the background and within a time limit. So a second cancellation cannot interrupt the
   request that stops a statement on the server, and a dead server cannot delay the closing.
"""

import asyncio
import os
import threading
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from sqlalchemy import Engine, NullPool, QueuePool
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import sessionmaker

from db.aio.threads import in_thread
from db.engine.reset import driver_connection_of
from db.errors import WrongLoopError

_CLOSE_TIMEOUT = 2.0  # seconds for a graceful close, as in asyncpg's dialect
_CANCELLED_TIMEOUT = 5.0  # seconds for the sessions of cancelled tasks to end; a ROLLBACK may take as long

# Connections of the process that this one was forked from. They are kept, so that not even the garbage collector closes
# them: that would take them out of the epoll set that both processes share.
_inherited: list[Any] = []


class LeasedEngine:
    """An engine with its sessionmaker, and the count of the sessions that lease it."""

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
        self._released: asyncio.Event | None = None
        self._retired = False
        self._closing: set[asyncio.Task[None]] = set()
        self._lifetime: AsyncGenerator[None, None] | None = None
        if isinstance(engine, AsyncEngine) and owned:
            self._close_connections_in_background(engine)
            self._lifetime = _started(self._close_with_loop())

    @property
    def of_this_process(self) -> bool:
        return self._pid == os.getpid()

    @property
    def is_loop_closed(self) -> bool:
        """Whether the engine's loop is closed. Then call `close_without_loop` and open another engine.

        False for an engine of the user's own, which the user closes, unless it keeps no connection between sessions.
        """
        if not self._loop.is_closed() or not isinstance(self.engine, AsyncEngine):
            return False
        return self._owned or isinstance(self.engine.pool, NullPool)

    def check_loop(self, name: str) -> None:
        """Raise :class:`WrongLoopError` on any loop but the one that opened the engine."""
        if isinstance(self.engine, AsyncEngine) and self._loop is not asyncio.get_running_loop():
            raise WrongLoopError(
                f"the engine of {name} belongs to another event loop, which is still open: call 'await "
                "database.dispose()' on that loop before you use it here, or use one Database a loop"
            )

    def close_without_loop(self) -> None:
        """Close the connections of a closed loop, without a word to the server."""
        if self._owned:
            self._sync_engine.dispose()

    @property
    def connections(self) -> tuple[int, int]:
        """How many of the pool's connections are used, and how many are open and not used. Zeros without a pool."""
        pool = self._sync_engine.pool
        return (pool.checkedout(), pool.checkedin()) if isinstance(pool, QueuePool) else (0, 0)

    def lease(self) -> None:
        self._leases += 1

    async def release(self) -> None:
        self._leases -= 1
        if self._released is not None:
            self._released.set()
        if self._retired and self._leases == 0:
            await self._dispose()

    async def wait_for_cancelled(self) -> None:
        """Wait, `_CANCELLED_TIMEOUT` at most, until the sessions of cancelled tasks have ended.

        A web server that is being stopped cancels its requests and goes on at once. Their statements still run on the
        database's server then, and would stay there after the process has ended.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_CANCELLED_TIMEOUT):
                while self._leases and (cancelled := _cancelled_tasks()):
                    self._released = asyncio.Event()
                    released = asyncio.ensure_future(self._released.wait())
                    try:
                        await asyncio.wait({*cancelled, released}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        released.cancel()
        if self._closing:
            await asyncio.wait(self._closing)

    async def retire(self) -> None:
        """Dispose of the engine as soon as no session leases it."""
        self._retired = True
        if self._leases == 0:
            await self._dispose()

    def forget_inherited(self) -> None:
        """Drop the pool and leave its connections open, as they belong to the process this one was forked from."""
        _inherited.extend((self._sync_engine.pool, self._lifetime))
        self._sync_engine.dispose(close=False)

    @property
    def _sync_engine(self) -> Engine:
        return self.engine.sync_engine if isinstance(self.engine, AsyncEngine) else self.engine

    async def _dispose(self) -> None:
        if self._lifetime is not None:
            await self._lifetime.aclose()
            await self._close_connections()  # also for a loop that has closed its generators, and then gone on
        elif self._owned:
            await in_thread(self._sync_engine.dispose)

    async def _close_with_loop(self) -> AsyncGenerator[None, None]:
        """Close the connections when this generator is closed: by `_dispose`, or by the loop before it ends.

        `asyncio.run` and others like it close a loop's asynchronous generators at its end.
        """
        try:
            yield
        finally:
            await self._close_connections()

    async def _close_connections(self) -> None:
        assert isinstance(self.engine, AsyncEngine)  # noqa: S101 - a sync engine has no loop
        await self.engine.dispose()
        if self._closing:
            await asyncio.wait(self._closing)

    def _close_connections_in_background(self, engine: AsyncEngine) -> None:
        def close(dbapi_connection: Any) -> None:
            if self._loop.is_closed():
                _close_without_loop(driver_connection_of(dbapi_connection))
                return
            try:
                running = asyncio.get_running_loop()
            except RuntimeError:  # the garbage collector, between two runs of the loop
                dbapi_connection.terminate()
                return
            if running is not self._loop:  # the garbage collector, in another thread
                self._loop.call_soon_threadsafe(close, dbapi_connection)
                return
            closing = running.create_task(_close(driver_connection_of(dbapi_connection)))
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
        # A traceback may keep a cursor, and with it the lock.
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


def _close_without_loop(driver_connection: Any) -> None:
    """Close a connection whose event loop is closed."""
    if hasattr(driver_connection, "pgconn"):  # psycopg
        driver_connection.pgconn.finish()
    elif hasattr(driver_connection, "stop"):  # aiosqlite: ends its thread, which would call the loop that runs here
        stopping = threading.Thread(target=driver_connection.stop)
        stopping.start()
        stopping.join()
    else:
        transport = driver_connection._transport  # noqa: SLF001 - asyncpg has no public name for it
        with suppress(RuntimeError):  # terminate() does all but the part that it leaves to the loop
            driver_connection.terminate()
        if hasattr(transport, "_call_connection_lost"):  # asyncio's, which would warn of an unclosed socket
            transport._call_connection_lost(None)  # noqa: SLF001 - that part


def _cancelled_tasks() -> set[asyncio.Task[Any]]:
    return {task for task in asyncio.all_tasks() if task.cancelling() and task is not asyncio.current_task()}


def _started(generator: AsyncGenerator[None, None]) -> AsyncGenerator[None, None]:
    """Run `generator` to its first `yield`, before which it must not wait. From then on the running loop knows it."""
    with suppress(StopIteration):
        generator.__anext__().send(None)
    return generator

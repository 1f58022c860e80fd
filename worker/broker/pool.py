"""``BoundedPool``: a limited number of connections to one Redis. A call that finds none free waits.

1. First come, first served: a released connection goes to the call that has waited longest.
2. A server that takes no more clients (``maxclients``) lowers the limit for a while: the pool uses fewer connections
   than it had open by then, so that workers can open theirs.
3. A wait has a time limit. Its error says which setting to change.
"""

import asyncio
import time
from collections import deque
from typing import Any

from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError

from worker.aio.deadline import Deadline
from worker.broker.redis_url import LONGEST_WAIT, MOST_CONNECTIONS

_REDUCED_FOR = 30.0  # seconds of the lower limit after the server has refused a connection


class ServerFullError(RedisConnectionError):
    """The server has closed a new connection at once. A server does so if it takes no more clients."""


class BoundedPoolMixin:
    """Let `get_connection` of a redis-py pool wait for a free connection instead of failing.

    Args:
        max_connections: the most connections of the pool.
        wait: seconds that a call waits for a connection.
    """

    max_connections: int
    _available_connections: list[AbstractConnection]
    _in_use_connections: set[AbstractConnection]

    def __init__(self, *, max_connections: int = MOST_CONNECTIONS, wait: float = LONGEST_WAIT, **options: Any) -> None:
        super().__init__(max_connections=max_connections, **options)  # type: ignore[call-arg]  # mixed into a pool
        self._wait = wait
        self._waiters: deque[asyncio.Future[AbstractConnection]] = deque()
        self._stale: set[AbstractConnection] = set()
        self._reduced_limit = max_connections
        self._reduced_until = 0.0

    async def get_connection(self: Any, *_command: object, **_options: object) -> Any:
        """Take an open connection out of the pool.

        Raises:
            redis.exceptions.ConnectionError: no connection could be opened, or none was released in time.
        """
        while True:
            connection = self.get_available_connection() if self._has_free else await self._wait_for_release()
            try:
                await self.ensure_connection(connection)
            except ServerFullError:
                if not self._shrink_without(connection):
                    await self.release(connection)
                    raise
            except BaseException:
                await self.release(connection)
                raise
            else:
                return connection

    async def release(self: Any, connection: AbstractConnection) -> None:
        """Return a connection to the pool, or pass it to the call that has waited longest."""
        if connection in self._stale:
            self._stale.discard(connection)
            await connection.disconnect(nowait=True)
        if len(self._in_use_connections) > 1 and self._count > self._limit:
            self._in_use_connections.discard(connection)
            await connection.disconnect(nowait=True)
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        await super().release(connection)  # type: ignore[misc]  # mixed into a pool

    async def replace_connections(self: Any) -> None:
        """Close idle connections now and used ones before their next use, as the URL may lead to another server."""
        self._stale = set(self._in_use_connections)
        await self.disconnect(inuse_connections=False)

    @property
    def _count(self) -> int:
        return len(self._in_use_connections) + len(self._available_connections)

    @property
    def _limit(self) -> int:
        """The most connections that the pool may have now."""
        return self._reduced_limit if time.monotonic() < self._reduced_until else self.max_connections

    @property
    def _has_free(self) -> bool:
        """Whether a connection is free, or may be opened."""
        in_use = len(self._in_use_connections)
        return bool(self._available_connections) or not in_use or in_use < self._limit

    def _shrink_without(self, refused: AbstractConnection) -> bool:
        """Go on without a connection that the server refused, with a lower limit.

        Returns:
            False if the pool has no other open connection.
        """
        others = {*self._available_connections, *self._in_use_connections} - {refused}
        are_open = sum(each.is_connected for each in others)
        if not are_open:
            return False
        self._in_use_connections.discard(refused)
        self._reduced_limit = max(are_open * 3 // 4, 1)
        self._reduced_until = time.monotonic() + _REDUCED_FOR
        return True

    async def _wait_for_release(self) -> AbstractConnection:
        """Wait until a connection is released."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            with Deadline(self._wait):
                connection: AbstractConnection = await waiter
                return connection
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():  # a connection was released as the wait ended
                await self.release(waiter.result())
            waiter.cancel()
            if isinstance(error, TimeoutError):
                raise _exhausted(len(self._in_use_connections), self._wait) from None
            raise


class CallLimit:
    """At most `count` calls at once, for a cluster's client, which has a pool for each node: ``async with limit:``.

    Args:
        wait: seconds that a call waits for a free place.
    """

    def __init__(self, count: int, wait: float) -> None:
        self._count = count
        self._wait = wait
        self._free = asyncio.Semaphore(count)

    async def __aenter__(self) -> None:
        if not self._free.locked():
            await self._free.acquire()  # does not wait
            return
        try:
            with Deadline(self._wait):
                await self._free.acquire()
        except TimeoutError:
            raise _exhausted(self._count, self._wait) from None

    async def __aexit__(self, *_: object) -> None:
        self._free.release()


class BoundedPool(BoundedPoolMixin, ConnectionPool):
    """Connections to one server."""


class BoundedSentinelPool(BoundedPoolMixin, SentinelConnectionPool):
    """Connections to the primary that the Sentinels name."""


def _exhausted(count: int, wait: float) -> RedisConnectionError:
    return RedisConnectionError(
        f"all {count} connections to Redis were in use for {wait:g} s: "
        "enqueue many jobs by enqueue_many, or set ?max_connections= in REDIS_URL"
    )

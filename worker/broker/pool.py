"""``BoundedPool``: a limited number of connections to one Redis; a call that finds none free waits for its turn.

1. First come, first served: a connection that is released goes to the call that has waited longest.
2. A server that takes no more clients (``maxclients``) is a limit, too: for a while the pool goes on with fewer
   connections than it had by then, so that workers find room for theirs.
3. A wait has an end, with an error that says what to change.
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

_FULL = 30.0  # seconds for which a server that refused a connection is not asked for more


class ServerFullError(RedisConnectionError):
    """The server has closed a new connection at once, as it does where it takes no more clients."""


class Waiting:
    """A pool of redis-py's whose `get_connection` waits instead of failing. Mixed into one of its classes.

    Args:
        max_connections: how many connections there may be.
        wait: seconds that a call waits for one.
    """

    max_connections: int
    _available_connections: list[AbstractConnection]
    _in_use_connections: set[AbstractConnection]

    def __init__(self, *, max_connections: int = MOST_CONNECTIONS, wait: float = LONGEST_WAIT, **options: Any) -> None:
        super().__init__(max_connections=max_connections, **options)  # type: ignore[call-arg]  # mixed into a pool
        self._wait = wait
        self._turns: deque[asyncio.Future[AbstractConnection]] = deque()
        self._stale: set[AbstractConnection] = set()
        self._room = max_connections
        self._full_until = 0.0

    async def get_connection(self: Any, *_command: object, **_options: object) -> Any:
        """A connection that is open.

        Raises:
            redis.exceptions.ConnectionError: none could be opened, or none was released in time.
        """
        while True:
            connection = self.get_available_connection() if self._has_one else await self._turn()
            try:
                await self.ensure_connection(connection)
            except ServerFullError:
                if not self._goes_on_without(connection):
                    await self.release(connection)
                    raise
            except BaseException:
                await self.release(connection)
                raise
            else:
                return connection

    async def release(self: Any, connection: AbstractConnection) -> None:
        """Give a connection back, or on to the call that has waited longest."""
        if connection in self._stale:
            self._stale.discard(connection)
            await connection.disconnect(nowait=True)
        if len(self._in_use_connections) > 1 and self._count > self._limit:
            self._in_use_connections.discard(connection)
            await connection.disconnect(nowait=True)
            return
        while self._turns:
            turn = self._turns.popleft()
            if not turn.done():
                turn.set_result(connection)
                return
        await super().release(connection)  # type: ignore[misc]  # mixed into a pool

    async def renew(self: Any) -> None:
        """Close the idle connections now, and each of the others before its next use, as the URL may lead elsewhere."""
        self._stale = set(self._in_use_connections)
        await self.disconnect(inuse_connections=False)

    @property
    def _count(self) -> int:
        return len(self._in_use_connections) + len(self._available_connections)

    @property
    def _limit(self) -> int:
        """How many connections there may be now."""
        return self._room if time.monotonic() < self._full_until else self.max_connections

    @property
    def _has_one(self) -> bool:
        """Whether a connection is free, or may be opened."""
        in_use = len(self._in_use_connections)
        return bool(self._available_connections) or not in_use or in_use < self._limit

    def _goes_on_without(self, refused: AbstractConnection) -> bool:
        """Whether the pool has other connections to go on with, and does."""
        others = {*self._available_connections, *self._in_use_connections} - {refused}
        are_open = sum(each.is_connected for each in others)
        if not are_open:
            return False
        self._in_use_connections.discard(refused)
        self._room = max(are_open * 3 // 4, 1)
        self._full_until = time.monotonic() + _FULL
        return True

    async def _turn(self) -> AbstractConnection:
        """Wait for a connection that is released."""
        turn = asyncio.get_running_loop().create_future()
        self._turns.append(turn)
        try:
            with Deadline(self._wait):
                connection: AbstractConnection = await turn
                return connection
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # it came just as the wait was given up
                await self.release(turn.result())
            turn.cancel()
            if isinstance(error, TimeoutError):
                raise _exhausted(len(self._in_use_connections), self._wait) from None
            raise


class Turns:
    """At most `count` calls at once, for a client of redis-py's that has a pool for each node: ``async with turns:``.

    Args:
        wait: seconds that a call waits for its turn.
    """

    def __init__(self, count: int, wait: float) -> None:
        self._count = count
        self._wait = wait
        self._free = asyncio.Semaphore(count)

    async def __aenter__(self) -> None:
        if not self._free.locked():
            await self._free.acquire()  # at once
            return
        try:
            with Deadline(self._wait):
                await self._free.acquire()
        except TimeoutError:
            raise _exhausted(self._count, self._wait) from None

    async def __aexit__(self, *_: object) -> None:
        self._free.release()


class BoundedPool(Waiting, ConnectionPool):
    """Connections to one server."""


class BoundedSentinelPool(Waiting, SentinelConnectionPool):
    """Connections to the primary that Sentinels know."""


def _exhausted(count: int, wait: float) -> RedisConnectionError:
    return RedisConnectionError(
        f"all {count} connections to Redis were in use for {wait:g} s: "
        "enqueue many jobs by enqueue_many, or set ?max_connections= in REDIS_URL"
    )

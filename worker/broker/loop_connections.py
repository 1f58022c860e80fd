"""``LoopConnections``: the Redis connections of one event loop: a client, dedicated connections, and a subscriber.

1. A connection belongs to the loop that opened it, so each loop has its own.
2. The connections are closed before their loop is. An orderly end of a loop (`asyncio.run`, pytest-asyncio, a server)
   closes the loop's async generators. `_wait_for_end` is an async generator that only waits for that.
3. If a loop was closed in another way, its connections are dropped, as nothing can use them any more.
"""

import contextlib
import functools
from collections.abc import AsyncGenerator

from redis.asyncio import Redis

from worker.broker.connection import AsyncClient, abandon, close, connect, connect_to_subscribe
from worker.broker.dedicated import DedicatedConnection
from worker.broker.pubsub import Subscriber


class LoopConnections:
    """The connections of the running event loop. Each is opened by its first use."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: AsyncClient | None = None
        self._dedicated: dict[str, DedicatedConnection] = {}
        self._subscriber: Subscriber | None = None
        self._until_closed = self._wait_for_end()
        with contextlib.suppress(StopIteration):  # start the generator, so that its loop knows it
            self._until_closed.__anext__().send(None)

    @property
    def client(self) -> AsyncClient:
        if self._client is None:
            self._client = connect(self._url)
        return self._client

    @property
    def subscriber(self) -> Subscriber:
        if self._subscriber is None:
            self._subscriber = Subscriber(functools.partial(connect_to_subscribe, self._url))
        return self._subscriber

    def dedicated(self, name: str) -> DedicatedConnection | None:
        """The dedicated connection for `name`. None for a cluster."""
        if name not in self._dedicated:
            client = self.client
            if not isinstance(client, Redis):
                return None
            self._dedicated[name] = DedicatedConnection(client)
        return self._dedicated[name]

    async def close_dedicated(self) -> None:
        """Close the dedicated connections. The next command opens each again."""
        for connection in self._dedicated.values():
            await connection.close()

    async def close(self) -> None:
        """Close all connections. Call this on the loop that they belong to."""
        await self._until_closed.aclose()

    def abandon(self) -> None:
        """Drop all connections of a loop that is closed."""
        if self._subscriber is not None:
            self._subscriber.abandon()
        for connection in self._dedicated.values():
            connection.abandon()
        if self._client is not None:
            abandon(self._client)

    async def _wait_for_end(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self._close_all()

    async def _close_all(self) -> None:
        subscriber, client, self._subscriber, self._client = self._subscriber, self._client, None, None
        dedicated, self._dedicated = self._dedicated, {}
        async with contextlib.AsyncExitStack() as closing:  # closes the others also if one raises
            if client is not None:
                closing.push_async_callback(close, client)
            for connection in dedicated.values():
                closing.push_async_callback(connection.close)
            if subscriber is not None:
                closing.push_async_callback(subscriber.close)

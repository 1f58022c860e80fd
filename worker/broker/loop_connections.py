"""``LoopConnections``: what one event loop has open to Redis: a client, lines of its own, and the subscription.

1. A connection belongs to the loop that opened it, so each loop that is alive has its own.
2. They are closed before their loop is. What ends a loop in order (`asyncio.run`, pytest-asyncio, a server) closes the
   loop's async generators, and one of them does nothing but wait for that.
3. What a loop has left open that was closed otherwise is dropped: nobody can use it any more.
"""

import contextlib
import functools
from collections.abc import AsyncGenerator

from redis.asyncio import Redis

from worker.broker.connection import AsyncClient, abandon, close, connect, connect_to_subscribe
from worker.broker.dedicated import DedicatedConnection
from worker.broker.pubsub import Subscriber


class LoopConnections:
    """The connections of the loop that runs now. Each is opened by its first use."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: AsyncClient | None = None
        self._lines: dict[str, DedicatedConnection] = {}
        self._notices: Subscriber | None = None
        self._until_closed = self._wait_for_end()
        with contextlib.suppress(StopIteration):  # begun: from now on its loop knows it
            self._until_closed.__anext__().send(None)

    @property
    def client(self) -> AsyncClient:
        if self._client is None:
            self._client = connect(self._url)
        return self._client

    @property
    def notices(self) -> Subscriber:
        if self._notices is None:
            self._notices = Subscriber(functools.partial(connect_to_subscribe, self._url))
        return self._notices

    def line(self, name: str) -> DedicatedConnection | None:
        """The connection that is kept for `name`; of a cluster there is none."""
        if name not in self._lines:
            client = self.client
            if not isinstance(client, Redis):
                return None
            self._lines[name] = DedicatedConnection(client)
        return self._lines[name]

    async def close_lines(self) -> None:
        """Close the lines; each is opened again by its next command."""
        for line in self._lines.values():
            await line.close()

    async def close(self) -> None:
        """Close all, on the loop that they belong to."""
        await self._until_closed.aclose()

    def abandon(self) -> None:
        """`close`, where their loop is closed."""
        if self._notices is not None:
            self._notices.abandon()
        for line in self._lines.values():
            line.abandon()
        if self._client is not None:
            abandon(self._client)

    async def _wait_for_end(self) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            await self._close_all()

    async def _close_all(self) -> None:
        notices, client, self._notices, self._client = self._notices, self._client, None, None
        lines, self._lines = self._lines, {}
        async with contextlib.AsyncExitStack() as closing:  # the others too, whatever one of them raises
            if client is not None:
                closing.push_async_callback(close, client)
            for line in lines.values():
                closing.push_async_callback(line.close)
            if notices is not None:
                closing.push_async_callback(notices.close)

"""Connections for the stand-ins of servers: accepting and opening them, and leaving none behind."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Listener:
    """Accepts connections on a port of 127.0.0.1 and serves each in a task of its own.

    A connection is closed when its task ends. What a task raises, other than `OSError`, `cut` raises.
    """

    def __init__(self, port: int, serve: Callable[[Streams], Coroutine[object, object, None]]) -> None:
        self._port = port
        self._serve = serve
        self._server: asyncio.Server | None = None
        self._served: list[tuple[asyncio.Task[None], asyncio.StreamWriter]] = []
        self.accepted = 0

    async def open(self) -> None:
        """Accept connections."""
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    def close(self) -> None:
        """Accept no more; those that are open go on."""
        if self._server:
            self._server.close()
            self._server = None

    async def cut(self) -> None:
        """End all connections, without delivering what is under way."""
        served, self._served = self._served, []
        for task, writer in served:
            writer.transport.abort()
            task.cancel()
        for task, writer in served:
            await asyncio.wait([task])
            await _closed(writer)
        for task, _ in served:
            if not task.cancelled():
                task.result()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        task = asyncio.create_task(self._run((reader, writer)))
        # Also for a task that is cancelled before it begins.
        task.add_done_callback(lambda _: writer.close())
        self._served.append((task, writer))

    async def _run(self, client: Streams) -> None:
        with suppress(OSError):
            await self._serve(client)


@asynccontextmanager
async def connected(connect: Callable[[], Awaitable[Streams]]) -> AsyncIterator[Streams]:
    """A connection for the length of a block; after an error what is under way is not delivered."""
    streams = await connect()
    writer = streams[1]
    try:
        yield streams
    except BaseException:
        writer.transport.abort()
        raise
    finally:
        writer.close()
        await _closed(writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        await writer.wait_closed()

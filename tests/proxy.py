"""A real TCP proxy in front of PostgreSQL or Redis that makes the network fail on demand."""

import asyncio
import re
from collections.abc import Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Self

from tests.addresses import in_front_of
from tests.listener import Listener, Streams, connected
from tests.wire import Conversation, PostgresConversation, RedisConversation

When = Literal["before", "after"]


@dataclass
class Trap:
    """Cuts the first connection that sends a statement in which `pattern` is found, once."""

    pattern: re.Pattern[str]
    when: When
    sprung: bool = False


class Proxy:
    """Stands between clients and one server, and lets through what it is told to.

    1. As an async context manager it listens on `url`: the given URL, with its own address.
    2. `drop` cuts all connections; `refuse` takes no new ones; `blackhole` takes them, and keeps all bytes to
       itself, both ways; `resume` ends both and delivers what was kept, as a network that is whole again does.
    3. `drop_on` cuts one connection at one statement: before the server sees it, or once it has answered.
    4. `rate` is how many bytes a second each connection carries to the server; None: as many as it can.
    5. `statements` is what clients sent to be executed, in order; `connections` is how many were accepted; `carried`
       is how many bytes have passed, both ways.
    """

    def __init__(self, url: str) -> None:
        self._front = in_front_of(url)
        self._listener = Listener(self._front.port, self._serve)
        self._protocol = PostgresConversation if url.startswith("postgresql") else RedisConversation
        self._flow = asyncio.Event()
        self._trap: Trap | None = None
        self.rate: float | None = None
        self.statements: list[str] = []
        self.carried = 0

    async def __aenter__(self) -> Self:
        await self.resume()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.refuse()
        await self.drop()

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return self._front.url

    @property
    def connections(self) -> int:
        """How many connections were accepted so far."""
        return self._listener.accepted

    def count(self, pattern: str) -> int:
        """How many of the statements so far a regular expression is found in."""
        return sum(1 for statement in self.statements if re.search(pattern, statement))

    async def drop(self) -> None:
        """Cut all connections, on both sides."""
        await self._listener.cut()

    def refuse(self) -> None:
        """Refuse new connections; those that are open go on."""
        self._listener.close()

    def blackhole(self) -> None:
        """Deliver nothing, and do not say so."""
        self._flow.clear()

    async def resume(self) -> None:
        """Let everything through."""
        self._flow.set()
        await self._listener.open()

    def drop_on(self, pattern: str, *, when: When) -> Trap:
        """Cut the next connection that sends a statement in which this regular expression is found, once.

        `before`: the server does not see the statement. `after`: the server has executed it, and the client
        does not hear so. A later trap takes the place of one that is not sprung yet.
        """
        self._trap = Trap(re.compile(pattern), when)
        return self._trap

    async def connect(self) -> Streams:
        """Open a connection to the server, once anything gets through."""
        await self._flow.wait()
        return await self._front.connect()

    async def receive(self, reader: asyncio.StreamReader) -> bytes:
        """The next bytes, once anything gets through; empty at the end."""
        data = await reader.read(65_536)
        self.carried += len(data)
        await self._flow.wait()
        return data

    def spring(self, statements: tuple[str, ...]) -> Trap | None:
        """Note what a client sends; the trap, if this has sprung it."""
        self.statements += statements
        trap = self._trap
        if trap is None or trap.sprung or not any(map(trap.pattern.search, statements)):
            return None
        trap.sprung = True
        return trap

    async def _serve(self, client: Streams) -> None:
        async with connected(self.connect) as server:
            link = _Link(self, self._protocol())
            await _first_to_end(
                link.pass_requests(client[0], server[1]),
                link.pass_answers(server[0], client[1]),
            )


class _Link:
    """What passes between one client and the server."""

    def __init__(self, proxy: Proxy, conversation: Conversation) -> None:
        self._proxy = proxy
        self._conversation = conversation
        self._unheard: int | None = None  # the number of the first answer that the client must not hear

    async def pass_requests(self, client: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        """Until the client ends, or is cut before a statement."""
        while data := await self._proxy.receive(client):
            if self._proxy.rate is not None:
                await asyncio.sleep(len(data) / self._proxy.rate)
            for request in self._conversation.requests(data):
                trap = self._proxy.spring(request.statements)
                if trap and trap.when == "before":
                    return
                if trap:
                    self._unheard = request.answer
                server.write(request.raw)
            await server.drain()

    async def pass_answers(self, server: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        """Until the server ends, or the client is cut after a statement."""
        while data := await self._proxy.receive(server):
            for answer in self._conversation.answers(data):
                if self._unheard is None or answer.number < self._unheard:
                    client.write(answer.raw)
                elif answer.ends:
                    return
            await client.drain()


async def _first_to_end(*pumps: Coroutine[object, object, None]) -> None:
    """Run the coroutines until one ends, and raise what it raised; the others are cancelled."""
    tasks = [asyncio.create_task(pump) for pump in pumps]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

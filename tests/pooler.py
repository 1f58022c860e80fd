"""A PostgreSQL pooler that lends a server connection for one transaction, as PgBouncer's transaction mode does.

As there, prepared statements and settings stay with the server connection, whoever is lent it next.
"""

import asyncio
import secrets
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sqlalchemy import make_url

from tests.addresses import in_front_of
from tests.listener import Listener, Streams, connected
from tests.wire import CANCEL_REQUEST, GSS_REQUEST, SSL_REQUEST

_PROTOCOL_3 = 3 << 16

_KNOWN_PARAMETERS = {
    *("user", "database", "application_name"),
    *("client_encoding", "datestyle", "timezone", "standard_conforming_strings"),
}
"""What PgBouncer takes in a client's start, other things being refused."""


@dataclass(frozen=True)
class Message:
    """One message of the protocol; the first ones of a client have no kind."""

    kind: bytes
    body: bytes

    @property
    def raw(self) -> bytes:
        return self.kind + struct.pack("!i", len(self.body) + 4) + self.body


_AUTHENTICATED = Message(b"R", struct.pack("!i", 0))


class Server:
    """One connection to PostgreSQL, and whether it is in the middle of something."""

    def __init__(self, streams: Streams) -> None:
        self._reader, self._writer = streams
        self._status = b"I"
        self._unanswered = 1  # its start
        self._unsynced = False
        self.answer = asyncio.create_task(_read(self._reader))
        """Its next message. One that is not lent has nothing to say but farewell."""
        self.cancel_key = b""
        self.greeting: list[Message] = []

    @property
    def busy(self) -> bool:
        """Whether it must stay with its client."""
        return self._status != b"I" or self._unanswered > 0 or self._unsynced

    async def start(self, message: Message) -> None:
        """Begin the session, and keep what the server says of itself. Raises `ConnectionError`."""
        self._writer.write(message.raw)
        while self._unanswered:
            await asyncio.wait([self.answer])
            answer = self.take_answer()
            if answer is None or answer.kind == b"E":
                raise ConnectionRefusedError(f"the server does not let the pooler in: {answer}")
            if answer.kind == b"S":
                self.greeting.append(answer)
            elif answer.kind == b"K":
                self.cancel_key = answer.body

    def send(self, message: Message) -> None:
        """Pass a client's message on."""
        if message.kind in (b"Q", b"S", b"F"):
            self._unanswered += 1
            self._unsynced = False
        elif message.kind in (b"P", b"B", b"D", b"E", b"C", b"H"):
            self._unsynced = True
        self._writer.write(message.raw)

    def take_answer(self) -> Message | None:
        """What has come, and wait for more; `None` when the connection has ended."""
        message = self.answer.result()
        self.answer = asyncio.create_task(_read(self._reader))
        if message and message.kind == b"Z":
            self._unanswered -= 1
            self._status = message.body
        return message

    async def close(self) -> None:
        """End the connection, in whatever state it is."""
        self.answer.cancel()
        self._writer.transport.abort()
        with suppress(OSError):
            await self._writer.wait_closed()


class Pooler:
    """Lends at most `size` server connections to any number of clients, one transaction at a time.

    As an async context manager it listens on `url`. All clients come in as the user that the given URL names,
    who must need no password.
    """

    def __init__(self, url: str, size: int = 1) -> None:
        self._front = in_front_of(url)
        self._start = _startup(user=make_url(url).username, database=make_url(url).database)
        self._listener = Listener(self._front.port, self._serve)
        self._slots = asyncio.Semaphore(size)
        self._idle: list[Server] = []
        self._lent: dict[bytes, Server] = {}

    async def __aenter__(self) -> Self:
        await self._listener.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        await self._listener.cut()
        for server in self._idle:
            await server.close()

    @property
    def url(self) -> str:
        """Where clients connect to."""
        return self._front.url

    async def _serve(self, client: Streams) -> None:
        start = await self._read_start(client)
        if start is None:
            return
        unknown = sorted(_parameters(start) - _KNOWN_PARAMETERS)
        if unknown:
            client[1].write(_fatal(f"unsupported startup parameter: {unknown[0]}").raw)
            return
        cancel_key = secrets.token_bytes(8)
        async with self._lend() as server:
            greeting = [_AUTHENTICATED, *server.greeting, Message(b"K", cancel_key), Message(b"Z", b"I")]
        client[1].writelines(message.raw for message in greeting)
        await self._serve_transactions(client, cancel_key)

    async def _read_start(self, client: Streams) -> Message | None:
        """The client's start, once it has given up encryption; `None` if it only came to cancel something."""
        while message := await _read(client[0], kind_bytes=0):
            (code,) = struct.unpack_from("!i", message.body)
            if code == CANCEL_REQUEST:
                await self._cancel(message.body[4:])
                return None
            if code not in (SSL_REQUEST, GSS_REQUEST):
                return message
            client[1].write(b"N")
        return None

    async def _cancel(self, cancel_key: bytes) -> None:
        server = self._lent.get(cancel_key)
        if server:
            async with connected(self._front.connect) as (reader, writer):
                writer.write(Message(b"", struct.pack("!i", CANCEL_REQUEST) + server.cancel_key).raw)
                await reader.read()

    async def _serve_transactions(self, client: Streams, cancel_key: bytes) -> None:
        request = asyncio.create_task(_read(client[0]))
        try:
            while not _leaves(await request):
                async with self._lend() as server:
                    self._lent[cancel_key] = server
                    request = await _serve_transaction(client, server, request)
        finally:
            request.cancel()
            self._lent.pop(cancel_key, None)

    @asynccontextmanager
    async def _lend(self) -> AsyncIterator[Server]:
        async with self._slots:
            server = await self._ready_server()
            try:
                yield server
            finally:
                if server.busy or server.answer.done():
                    await server.close()
                else:
                    self._idle.append(server)

    async def _ready_server(self) -> Server:
        while self._idle:
            server = self._idle.pop()
            if not server.answer.done():
                return server
            await server.close()
        server = Server(await self._front.connect())
        try:
            await server.start(self._start)
        except BaseException:
            await server.close()
            raise
        return server


async def _serve_transaction(
    client: Streams, server: Server, request: "asyncio.Task[Message | None]"
) -> "asyncio.Task[Message | None]":
    """Pass messages both ways until the server's transaction is over; the client's next message.

    Raises `ConnectionError` if the server is lost.
    """
    while True:
        await asyncio.wait([request, server.answer], return_when=asyncio.FIRST_COMPLETED)
        if server.answer.done():
            message = server.take_answer()
            client[1].write((message or _fatal("server conn crashed?")).raw)
            await client[1].drain()
            if message is None:
                raise ConnectionResetError
            if not server.busy:
                return request
        else:
            message = request.result()
            if message is None or _leaves(message):
                return request
            server.send(message)
            request = asyncio.create_task(_read(client[0]))


async def _read(reader: asyncio.StreamReader, kind_bytes: int = 1) -> Message | None:
    """The next message; `None` at the end."""
    try:
        kind = await reader.readexactly(kind_bytes)
        (length,) = struct.unpack("!i", await reader.readexactly(4))
        return Message(kind, await reader.readexactly(length - 4))
    except (asyncio.IncompleteReadError, OSError):
        return None


def _leaves(message: Message | None) -> bool:
    return message is None or message.kind == b"X"


def _startup(**parameters: str | None) -> Message:
    words = [word for key, value in parameters.items() if value for word in (key, value)]
    return Message(b"", struct.pack("!i", _PROTOCOL_3) + "\0".join([*words, "", ""]).encode())


def _parameters(start: Message) -> set[str]:
    return {name.decode() for name in start.body[4:].split(b"\0")[::2] if name}


def _fatal(text: str) -> Message:
    fields = ("SFATAL", "VFATAL", "C08P01", f"M{text}", "", "")
    return Message(b"E", "\0".join(fields).encode())

"""What a proxy must understand of the two protocols: which statement is sent, and where its answer ends."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import hiredis

SSL_REQUEST, GSS_REQUEST, CANCEL_REQUEST = 80877103, 80877104, 80877102


@dataclass(frozen=True)
class Request:
    """Bytes of the client: the statements that they make the server execute, and which answer reports them."""

    raw: bytes
    statements: tuple[str, ...] = ()
    answer: int = 0


@dataclass(frozen=True)
class Answer:
    """Bytes of the server: the number of the answer that they are part of, and whether they end it."""

    raw: bytes
    number: int
    ends: bool


class Conversation(Protocol):
    """One connection's two directions. Bytes may come in pieces of any size; none are held back for long."""

    def requests(self, data: bytes) -> Iterator[Request]:
        """Split what the client sent."""

    def answers(self, data: bytes) -> Iterator[Answer]:
        """Split what the server sent."""


class PostgresConversation:
    """PostgreSQL's protocol 3: one message at a time.

    An answer ends with ReadyForQuery. There is one for the start of the session, and one for each Query and Sync.
    """

    def __init__(self) -> None:
        self._from_client = b""
        self._from_server = b""
        self._in_session = False
        self._single_bytes = 0  # answers to requests for encryption have no frame
        self._asked = 1
        self._answered = 0
        self._prepared: dict[bytes, str] = {}
        self._portals: dict[bytes, str] = {}

    def requests(self, data: bytes) -> Iterator[Request]:
        """One for each message."""
        self._from_client += data
        while True:
            header = 1 if self._in_session else 0
            length = _message_length(self._from_client, header)
            if length is None:
                return
            raw, self._from_client = self._from_client[:length], self._from_client[length:]
            yield self._message(raw) if self._in_session else self._startup(raw)

    def _startup(self, raw: bytes) -> Request:
        (code,) = struct.unpack_from("!i", raw, 4)
        if code in (SSL_REQUEST, GSS_REQUEST):
            self._single_bytes += 1
        elif code != CANCEL_REQUEST:
            self._in_session = True
        return Request(raw)

    def _message(self, raw: bytes) -> Request:
        kind, body = raw[:1], raw[5:]
        match kind:
            case b"Q":
                self._asked += 1
                return Request(raw, (_text(body.partition(b"\0")[0]),), self._asked)
            case b"S" | b"F":
                self._asked += 1
            case b"P":
                name, query, _ = body.split(b"\0", 2)
                self._prepared[name] = _text(query)
            case b"B":
                portal, name, _ = body.split(b"\0", 2)
                self._portals[portal] = self._prepared.get(name, "")
            case b"E":
                statement = self._portals.get(body.partition(b"\0")[0], "")
                return Request(raw, (statement,), self._asked + 1)
        return Request(raw)

    def answers(self, data: bytes) -> Iterator[Answer]:
        """One for each message."""
        self._from_server += data
        while self._from_server:
            if self._single_bytes:
                self._single_bytes -= 1
                length: int | None = 1
                ends = False
            else:
                length = _message_length(self._from_server, 1)
                ends = self._from_server[:1] == b"Z"
            if length is None:
                return
            raw, self._from_server = self._from_server[:length], self._from_server[length:]
            yield Answer(raw, self._answered + 1, ends)
            self._answered += ends


class RedisConversation:
    """Redis' protocol 2 or 3, by whole pieces as they come: each may hold several commands or replies.

    Messages that the server pushes are taken for replies: not for connections that subscribe.
    """

    def __init__(self) -> None:
        self._commands = hiredis.Reader()
        self._replies = hiredis.Reader()
        self._asked = 0
        self._answered = 0

    def requests(self, data: bytes) -> Iterator[Request]:
        """One, with the commands that `data` completes."""
        commands = tuple(" ".join(_text(word) for word in command) for command in _complete(self._commands, data))
        self._asked += len(commands)
        yield Request(data, commands, self._asked)

    def answers(self, data: bytes) -> Iterator[Answer]:
        """One, numbered as the last reply that `data` completes, or as the one that it begins."""
        replies = sum(1 for _ in _complete(self._replies, data))
        yield Answer(data, self._answered + (replies or 1), ends=replies > 0)
        self._answered += replies


def _complete(reader: "hiredis.Reader", data: bytes) -> Iterator[list[bytes]]:
    reader.feed(data)
    while (message := reader.gets()) is not False:
        yield message


def _message_length(data: bytes, header: int) -> int | None:
    if len(data) < header + 4:
        return None
    length = header + int(struct.unpack_from("!i", data, header)[0])
    return length if len(data) >= length else None


def _text(data: bytes) -> str:
    return data.decode(errors="replace")

"""``RoundTripCounter``: a relay in front of a server that counts round trips, for any protocol.

All that a client sends before the server answers is one round trip. (Redis' own counters count commands, and among them
those that a script calls.)
"""

import selectors
import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

_CHUNK = 65536


class RoundTripCounter:
    """Listens on a port of its own, for the length of a ``with`` block."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._lock = threading.Lock()
        self._round_trips = 0

    def __enter__(self) -> Self:
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def take(self) -> int:
        """The round trips since the last call."""
        with self._lock:
            count, self._round_trips = self._round_trips, 0
        return count

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with (
            client,
            socket.create_connection(("127.0.0.1", self._server_port)) as server,
            selectors.DefaultSelector() as ready,
            suppress(OSError),
        ):
            ready.register(client, selectors.EVENT_READ, server)
            ready.register(server, selectors.EVENT_READ, client)
            client_is_sending = False
            while True:
                for key, _ in ready.select():
                    source, target = key.fileobj, key.data
                    assert isinstance(source, socket.socket)  # noqa: S101 - registered above
                    data = source.recv(_CHUNK)
                    if not data:
                        return
                    if source is client and not client_is_sending:
                        self._count()
                    client_is_sending = source is client
                    target.sendall(data)

    def _count(self) -> None:
        with self._lock:
            self._round_trips += 1

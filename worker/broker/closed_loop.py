"""Release connections and tasks of an event loop that is closed.

A closed loop cannot close them in order. If they were only forgotten, their sockets would stay open until the garbage
collector finds them, and asyncio and redis-py would warn. Neither has a public way to release them.
"""

import asyncio
import contextlib
from typing import Any

from redis.asyncio.connection import AbstractConnection


def drop_connection(connection: AbstractConnection) -> None:
    """Close a connection's socket. The connection may be opened again."""
    writer: asyncio.StreamWriter | None = connection._writer  # noqa: SLF001 - no public way
    connection._reader = connection._writer = None  # noqa: SLF001 - no public way
    if writer is not None:
        _drop_transport(writer.transport)


def drop_task(task: "asyncio.Task[Any]") -> None:
    """Keep a task that will never continue from being reported as pending."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001 - as asyncio does itself


def _drop_transport(transport: asyncio.WriteTransport) -> None:
    # A closed loop calls no callbacks, so the connection-lost callback is called here.
    with contextlib.suppress(RuntimeError):
        transport.abort()
    inner = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    for each in (transport, inner):
        lost = getattr(each, "_call_connection_lost", None)  # uvloop has none: it closed the socket with the loop
        if lost is not None:
            with contextlib.suppress(RuntimeError):
                lost(None)

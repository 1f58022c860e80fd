"""Dropping what belonged to an event loop that is closed.

Nobody can close it in order any more, and where it is merely forgotten its sockets stay open until the garbage
collector finds them, which asyncio and redis-py then warn of. Both have no public way to do this.
"""

import asyncio
import contextlib
from typing import Any

from redis.asyncio.connection import AbstractConnection


def drop_connection(connection: AbstractConnection) -> None:
    """Close a connection's socket; the connection may be opened again."""
    writer: asyncio.StreamWriter | None = connection._writer  # noqa: SLF001 - see above
    connection._reader = connection._writer = None  # noqa: SLF001 - likewise
    if writer is not None:
        _drop_transport(writer.transport)


def drop_task(task: "asyncio.Task[Any]") -> None:
    """Forget a task that will never go on."""
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # noqa: SLF001 - as asyncio does itself


def _drop_transport(transport: asyncio.WriteTransport) -> None:
    # The loop refuses to call anything: what it would call is called here.
    with contextlib.suppress(RuntimeError):
        transport.abort()
    inner = getattr(getattr(transport, "_ssl_protocol", None), "_transport", None)
    for each in (transport, inner):
        lost = getattr(each, "_call_connection_lost", None)  # uvloop has none, and has closed the socket with the loop
        if lost is not None:
            with contextlib.suppress(RuntimeError):
                lost(None)

"""asyncpg's `executemany`, made to heed a cancellation while it writes.

asyncpg writes the rows piece by piece, and waits for the network in between. A cancellation that comes then is
swallowed: asyncpg goes on to wait for an answer that the server never gives, until the connection's command timeout.
A time limit that expires in the same place is heeded: asyncpg tells the server that no more rows come. So whoever
cancels is passed on as a time limit, and the server is asked to stop.
"""

import asyncio
from collections.abc import Coroutine, Generator, Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any

from sqlalchemy import Engine, event


def honor_cancellation(engine: Engine) -> None:
    """Let the connections that `engine` opens from now on heed a cancellation in `executemany`, if they are asyncpg's.

    The statement of a session and a direct use of the driver's connection alike.
    """
    if engine.dialect.driver == "asyncpg":
        event.listen(engine, "do_connect", _ask_for_our_class)


def _ask_for_our_class(_dialect: Any, _record: Any, _args: Any, arguments: dict[str, Any]) -> None:
    arguments.setdefault("connection_class", _connection_class())


@cache
def _connection_class() -> type:
    import asyncpg  # noqa: PLC0415 - a SQLite-only app has no asyncpg loaded

    class Connection(asyncpg.Connection):  # type: ignore[misc]  # asyncpg has no types
        __slots__ = ()

        async def executemany(self, command: str, args: Iterable[Any], **options: Any) -> Any:
            rows = _Rows(args)
            return await _Cancellable(super().executemany(command, rows, **options), rows)

        async def fetchmany(self, query: str, args: Iterable[Any], **options: Any) -> Any:
            rows = _Rows(args)
            return await _Cancellable(super().fetchmany(query, rows, **options), rows)

    return Connection


class _Rows:
    """The rows of one `executemany`. They know whether asyncpg is writing them."""

    being_written = False

    def __init__(self, rows: Iterable[Any]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Any]:
        self.being_written = True
        yield from self._rows
        self.being_written = False


class _Cancellable:
    """Awaits `work` step by step in the caller's own task, as `await work` does, and steps in when it is cancelled.

    A task of its own would do as well, at the cost of a task for each `executemany`.
    """

    def __init__(self, work: Coroutine[Any, Any, Any], rows: _Rows) -> None:
        self._work = work
        self._rows = rows

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            awaited = self._work.send(None)
            while True:
                try:
                    yield awaited
                except asyncio.CancelledError as cancellation:
                    if self._rows.being_written:
                        self._stop_writing(cancellation)
                        raise
                    awaited = self._work.throw(cancellation)
                except BaseException as error:  # noqa: BLE001 - what was awaited has failed, as `work` must know
                    awaited = self._work.throw(error)
                else:
                    awaited = self._work.send(None)
        except StopIteration as end:
            return end.value

    def _stop_writing(self, cancellation: asyncio.CancelledError) -> None:
        # An error of the server's may have come at the same time; the caller is cancelled all the same.
        with suppress(Exception, asyncio.CancelledError):
            answer = self._work.throw(TimeoutError())
            answer.cancel()  # which lets asyncpg send the server a request to stop
            self._work.throw(cancellation)

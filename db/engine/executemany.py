"""Cancellation of asyncpg's `executemany` while it writes rows.

asyncpg writes the rows piece by piece, and waits for the network in between. It swallows a cancellation that arrives
during such a wait. It then waits for an answer that the server never gives, until the connection's command timeout.
A timeout in the same place works: asyncpg tells the server that no more rows come. So a cancellation is passed on to
asyncpg as a timeout, and the server is asked to stop.
"""

import asyncio
from collections.abc import Coroutine, Generator, Iterable, Iterator
from contextlib import suppress
from functools import cache
from typing import Any

from sqlalchemy import Engine, event


def honor_cancellation(engine: Engine) -> None:
    """Let a cancellation end `executemany` at once on the asyncpg connections that `engine` opens from now on.

    For the statements of a session and for a direct use of the driver's connection.
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
    """The rows of one `executemany`, with a flag that tells whether asyncpg is writing them."""

    being_written = False

    def __init__(self, rows: Iterable[Any]) -> None:
        self._rows = rows

    def __iter__(self) -> Iterator[Any]:
        self.being_written = True
        yield from self._rows
        self.being_written = False


class _Cancellable:
    """An awaitable that runs `work` in the caller's own task, as `await work` does, and handles a cancellation.

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
                except BaseException as error:  # noqa: BLE001 - the error of the awaited step belongs to `work`
                    awaited = self._work.throw(error)
                else:
                    awaited = self._work.send(None)
        except StopIteration as end:
            return end.value

    def _stop_writing(self, cancellation: asyncio.CancelledError) -> None:
        # The server may report an error at the same time. The caller is cancelled all the same.
        with suppress(Exception, asyncio.CancelledError):
            answer = self._work.throw(TimeoutError())
            answer.cancel()  # makes asyncpg send the server a request to stop
            self._work.throw(cancellation)

"""The event loop of a worker: uvloop's, if uvloop can be imported. No job can end it.

In asyncio a `SystemExit` or `KeyboardInterrupt` of any task or callback leaves the loop and ends the process. A job's
child task that parses a command line would end the worker. Here only the main task ends its loop.
"""

import asyncio
import logging
from collections.abc import Awaitable, Generator
from typing import Any, TypeVar

from worker.errors import Stopped

logger = logging.getLogger("worker")

T = TypeVar("T")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """Make an event loop: uvloop's, else asyncio's."""
    try:
        import uvloop  # noqa: PLC0415 - not available on Windows
    except ImportError:
        return _loop_class(asyncio.SelectorEventLoop)()
    return _loop_class(uvloop.Loop)()


class _OnlyMainTaskExits(asyncio.AbstractEventLoop):
    """A mixin for a loop that keeps running when a task other than the main one tries to end the process.

    That is safe: the failed task holds its exception for the code that awaits it, and all ready callbacks are still
    queued. The exception is caught around the whole loop, so it costs a job no time.
    """

    _main: "asyncio.Future[Any] | None" = None
    _stop_requested = False

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        self._main = asyncio.ensure_future(future, loop=self)  # type: ignore[arg-type]  # typeshed is stricter here
        try:
            result: T = super().run_until_complete(self._main)
            return result
        finally:
            self._main = None

    def run_forever(self) -> None:
        self._stop_requested = False
        while True:
            try:
                super().run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                if self._main is None or isinstance(error, Stopped) or _ended_by(self._main, error):
                    raise
                logger.exception("a job's task or callback raised %s; the worker goes on", type(error).__name__)
            else:
                return
            if self._stop_requested:  # in the iteration that the exception has ended, and with it the request
                super().stop()

    def stop(self) -> None:
        self._stop_requested = True
        super().stop()


def _loop_class(base: type[asyncio.AbstractEventLoop]) -> type[asyncio.AbstractEventLoop]:
    # The base's name and module, so that code that checks for uvloop by them still finds it.
    return type(base.__name__, (_OnlyMainTaskExits, base), {"__module__": base.__module__})


def _ended_by(main: "asyncio.Future[Any]", error: BaseException) -> bool:
    return main.done() and not main.cancelled() and main.exception() is error

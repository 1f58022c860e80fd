"""Which event loop a worker runs on: uvloop's, where uvloop can be imported; and why no job can end it.

asyncio lets `SystemExit` and `KeyboardInterrupt` of any task or callback out of the loop, and so ends the process: a
job's child task that parses a command line would take the worker along. Here only the main task ends its loop.
"""

import asyncio
import logging
from collections.abc import Awaitable, Generator
from typing import Any, TypeVar

from worker.errors import Stopped

logger = logging.getLogger("worker")

T = TypeVar("T")


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop of the best kind there is."""
    try:
        import uvloop  # noqa: PLC0415 - it may be missing: there is none for Windows
    except ImportError:
        return _loop_class(asyncio.SelectorEventLoop)()
    return _loop_class(uvloop.Loop)()


class _GoesOn(asyncio.AbstractEventLoop):
    """A loop that runs on when something else than its main task wants to end the process.

    The loop that is mixed in has left nothing undone: the task has its exception, which whoever awaits it gets, and
    what else is ready still is. Catching it there, where the loop is driven, costs a job nothing.
    """

    _main: "asyncio.Future[Any] | None" = None
    _is_told_to_stop = False

    def run_until_complete(self, future: Generator[Any, None, T] | Awaitable[T]) -> T:
        self._main = asyncio.ensure_future(future, loop=self)  # type: ignore[arg-type]  # typeshed is stricter here
        try:
            result: T = super().run_until_complete(self._main)
            return result
        finally:
            self._main = None

    def run_forever(self) -> None:
        self._is_told_to_stop = False
        while True:
            try:
                super().run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                if self._main is None or isinstance(error, Stopped) or _ended_by(self._main, error):
                    raise
                logger.exception("a job's task or callback asked to end the process: the worker goes on")
            else:
                return
            if self._is_told_to_stop:  # in the same turn, which has forgotten it
                super().stop()

    def stop(self) -> None:
        self._is_told_to_stop = True
        super().stop()


def _loop_class(base: type[asyncio.AbstractEventLoop]) -> type[asyncio.AbstractEventLoop]:
    return type(base.__name__, (_GoesOn, base), {"__module__": base.__module__})  # who looks for uvloop finds it


def _ended_by(main: "asyncio.Future[Any]", error: BaseException) -> bool:
    return main.done() and not main.cancelled() and main.exception() is error

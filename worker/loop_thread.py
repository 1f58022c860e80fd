"""Event loops for code that has none: plain functions, threads, synchronous web frameworks.

1. `run_on` runs a coroutine on a loop of another thread, and waits. The coroutine sees the caller's context, and so its
   scope.
2. `run` does so on a loop of the process's own, in a thread that the first use starts, so that all threads share the
   connections of one loop. A forked child starts its own.
"""

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from worker.errors import WorkerError

T = TypeVar("T")

_LOOK = 1.0  # seconds between two looks at whether a loop is still there
_STOPPING = 2.0  # seconds that the process's own loop gets to close its connections


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on the process's own loop, and wait for the end."""
    return run_on(_started().loop, coroutine)


def own_loop() -> asyncio.AbstractEventLoop | None:
    """The process's own loop, if anybody has used it."""
    return None if _thread is None else _thread.loop


def run_on(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run on a loop of another thread, and wait for the end.

    Raises:
        WorkerError: the loop is closed, or was closed meanwhile.
    """
    try:
        result = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:
        coroutine.close()
        raise _closed() from None
    try:
        _wait(result, loop)
    except BaseException:
        result.cancel()
        raise
    return result.result()


def _wait(result: concurrent.futures.Future[Any], loop: asyncio.AbstractEventLoop) -> None:
    while not concurrent.futures.wait([result], _LOOK).done:
        if loop.is_closed():
            raise _closed()


def _closed() -> WorkerError:
    return WorkerError("the event loop that this was to run on is closed")


class _LoopThread:
    """A thread that runs an event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="worker-loop", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the loop in order, which closes what it has open."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_STOPPING)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.get_loop().run_forever()


_starting = threading.Lock()
_thread: _LoopThread | None = None


def _started() -> _LoopThread:
    global _thread  # noqa: PLW0603 - the one of the process
    with _starting:
        if _thread is None:
            _thread = _LoopThread()
            atexit.register(_thread.stop)
        return _thread


def _start_anew() -> None:
    global _starting, _thread  # noqa: PLW0603 - a forked child has none of its parent's threads
    _starting = threading.Lock()
    if _thread is not None:
        atexit.unregister(_thread.stop)
    _thread = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_start_anew)

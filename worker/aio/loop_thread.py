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
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from worker.errors import WorkerError

T = TypeVar("T")

_CLOSED = "the event loop that this was to run on is closed"
_SILENT = "the event loop that this was to run on does not answer: does its thread wait for this one?"

_LOOK = 1.0  # seconds between two looks at whether a loop is still there
_BEGINNING = 10.0  # seconds that a loop may need to begin: one whose thread waits for the caller never does
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
        WorkerError: the loop is closed, or does not begin: then the coroutine has not run, and will not.
    """
    undecided = threading.Lock()  # whoever takes it first says whether the coroutine runs

    async def begin() -> T:
        if not undecided.acquire(blocking=False):
            raise asyncio.CancelledError
        return await coroutine

    beginning = begin()
    try:
        result = asyncio.run_coroutine_threadsafe(beginning, loop)
    except RuntimeError:
        beginning.close()
        coroutine.close()
        raise WorkerError(_CLOSED) from None
    give_up_at = time.monotonic() + _BEGINNING
    try:
        while not concurrent.futures.wait([result], _LOOK).done:
            is_closed = loop.is_closed()
            if is_closed or time.monotonic() > give_up_at:
                has_begun = not undecided.acquire(blocking=False)
                if not has_begun:
                    coroutine.close()
                if is_closed:
                    beginning.close()
                if is_closed or not has_begun:
                    raise WorkerError(_CLOSED if is_closed else _SILENT)
    finally:
        result.cancel()  # which does nothing where it has ended
    return result.result()


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

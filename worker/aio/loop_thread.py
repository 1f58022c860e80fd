"""Running coroutines from code without an event loop: plain functions, threads, synchronous web frameworks.

1. `run_on` runs a coroutine on an event loop of another thread, and waits. The coroutine sees the caller's context, and
   so its scope.
2. `run` uses an event loop that belongs to the process. Its thread is started at the first use. So all threads share
   the connections of one loop. A forked child starts its own.
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

_CLOSED = "the event loop for this call is closed: make the call before its thread ends"
_NOT_RUNNING = "the event loop for this call does not answer: its thread must not wait for this one"

_CHECK_INTERVAL = 1.0  # seconds between two checks of whether the loop is closed
_START_TIMEOUT = 10.0  # seconds; a loop whose thread waits for the caller never starts the coroutine
_STOP_TIMEOUT = 2.0  # seconds for the process's own loop to close its connections


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the process's own loop, and return its result."""
    return run_on(_started().loop, coroutine)


def own_loop() -> asyncio.AbstractEventLoop | None:
    """The process's own loop, or None if it was not used yet."""
    return None if _thread is None else _thread.loop


def run_on(loop: asyncio.AbstractEventLoop, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on a loop of another thread, and return its result.

    Raises:
        WorkerError: the loop is closed, or did not start the coroutine in time. Then the coroutine will not run.
    """
    decision = threading.Lock()  # the first side to take it decides whether the coroutine runs

    async def start() -> T:
        if not decision.acquire(blocking=False):
            raise asyncio.CancelledError
        return await coroutine

    starting = start()
    try:
        result = asyncio.run_coroutine_threadsafe(starting, loop)
    except RuntimeError:
        starting.close()
        coroutine.close()
        raise WorkerError(_CLOSED) from None
    deadline = time.monotonic() + _START_TIMEOUT
    try:
        while not concurrent.futures.wait([result], _CHECK_INTERVAL).done:
            is_closed = loop.is_closed()
            if is_closed or time.monotonic() > deadline:
                has_started = not decision.acquire(blocking=False)
                if not has_started:
                    coroutine.close()
                if is_closed:
                    starting.close()
                if is_closed or not has_started:
                    raise WorkerError(_CLOSED if is_closed else _NOT_RUNNING)
    finally:
        result.cancel()  # does nothing if it has ended
    return result.result()


class _LoopThread:
    """A thread with an event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="worker-loop", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the loop in an orderly way, which closes its connections."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_STOP_TIMEOUT)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self.loop) as runner:
            runner.get_loop().run_forever()


_starting = threading.Lock()
_thread: _LoopThread | None = None


def _started() -> _LoopThread:
    global _thread  # noqa: PLW0603 - one thread per process
    with _starting:
        if _thread is None:
            _thread = _LoopThread()
            atexit.register(_thread.stop)
        return _thread


def _reset_after_fork() -> None:
    global _starting, _thread  # noqa: PLW0603 - a forked child does not have its parent's threads
    _starting = threading.Lock()
    if _thread is not None:
        atexit.unregister(_thread.stop)
    _thread = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)

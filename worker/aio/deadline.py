"""``Deadline``: a time limit for a block, for blocks that run in every job.

It does what `asyncio.timeout` does, at less cost: `asyncio.timeout` takes a tenth of the time of a job without I/O. In
return it cannot be rescheduled, and it starts when it is created.
"""

import asyncio
from types import TracebackType
from typing import Self


class Deadline:
    """Cancel the current asyncio task after `seconds`. The block then raises `TimeoutError`."""

    __slots__ = ("_cancelling", "_handle", "_task", "expired")

    def __init__(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 - coroutines run in tasks
        self.expired = False
        self._task = task
        self._cancelling = task.cancelling()
        self._handle = loop.call_later(seconds, self._expire)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handle.cancel()
        # If the task was cancelled from outside as well, that cancellation takes precedence.
        if self.expired and self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()

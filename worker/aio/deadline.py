"""``Deadline``: a limit on how long a block may take, for one that runs in every job.

It does what `asyncio.timeout` does, whose generality costs a job without I/O a tenth of its time: it cannot be
rescheduled, and it begins when it is made.
"""

import asyncio
from types import TracebackType
from typing import Self


class Deadline:
    """Cancels the asyncio task that runs here after `seconds`; the block then raises `TimeoutError`."""

    __slots__ = ("_asked_before", "_handle", "_task", "expired")

    def __init__(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        assert task is not None  # noqa: S101 - coroutines run in tasks
        self.expired = False
        self._task = task
        self._asked_before = task.cancelling()
        self._handle = loop.call_later(seconds, self._expire)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._handle.cancel()
        # Somebody else may have cancelled the task as well, and is to be heard.
        if self.expired and self._task.uncancel() <= self._asked_before and isinstance(error, asyncio.CancelledError):
            raise TimeoutError from error

    def _expire(self) -> None:
        self.expired = True
        self._task.cancel()

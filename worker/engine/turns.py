"""``Turns``: at most so many jobs run at once; short ones are claimed a little ahead, and wait their turn.

1. Where jobs take a few milliseconds, most of a worker's time would go by between one batch and the next. So up to as
   many again are claimed ahead while jobs are short.
2. One that is claimed and cannot begin soon, as the jobs before it turned out to be long, goes back to its place in the
   queue: another worker may be free.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable

from worker.engine.held import HeldJob

_SHORT = 0.005  # seconds that a job takes, on average of late, to count as short
_WEIGHT = 1 / 16  # of the last job in that average
_SOON = 0.05  # seconds that a job may wait its turn


class Turns:
    """Whose turn it is.

    Args:
        slots: how many jobs may run at once.
        begin: begins to run a job; `ended` says when it is over.
        give_back: puts a job back that was not begun.
    """

    def __init__(self, slots: int, begin: Callable[[HeldJob], None], give_back: Callable[[HeldJob], None]) -> None:
        self._free = slots
        self._slots = slots
        self._begin = begin
        self._give_back = give_back
        self._waiting: deque[HeldJob] = deque()
        self._average = float("inf")
        self._watch: asyncio.TimerHandle | None = None

    @property
    def ahead(self) -> int:
        """How many jobs to claim beyond those that can begin at once."""
        return self._slots if self._average < _SHORT else 0

    def take(self, job: HeldJob) -> None:
        """Begin a claimed job now, or when it is its turn."""
        if self._free > 0:
            self._free -= 1
            self._begin(job)
            return
        self._waiting.append(job)
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_later(_SOON, self._give_back_late)

    def ended(self, job: HeldJob) -> None:
        """A job that was begun is over: the next one's turn has come."""
        took = time.monotonic() - job.begun
        self._average = took if self._average == float("inf") else self._average + _WEIGHT * (took - self._average)
        if self._waiting:
            self._begin(self._waiting.popleft())
        else:
            self._free += 1

    def give_all_back(self) -> None:
        """Let nobody wait any more."""
        while self._waiting:
            self._give_back(self._waiting.popleft())

    def _give_back_late(self) -> None:
        """Give back those who have waited too long, and look again as long as somebody waits."""
        self._watch = None
        latest = time.monotonic() - _SOON
        while self._waiting and self._waiting[0].begun <= latest:
            self._average = float("inf")  # the jobs are not short any more
            self._give_back(self._waiting.popleft())
        if self._waiting:
            self._watch = asyncio.get_running_loop().call_later(_SOON / 2, self._give_back_late)

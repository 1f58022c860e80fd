"""The speed at which workers drain a queue: from the first line of their first job to the last result."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from bench.contenders import Contender
from bench.process import STALL_TIMEOUT, ContenderError, Process
from bench.progress import Step

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.002, 0.25  # seconds between two polls; each poll costs the store time

OnPoll = Callable[[Process, int], None]
"""Called with a worker and the number of jobs that have not ended."""


@dataclass(frozen=True)
class _Sample:
    """How many jobs had not ended at a time of the monotonic clock."""

    at: float
    unended: int

    def speed_since(self, earlier: "_Sample") -> float:
        """The jobs a second between two samples."""
        return (earlier.unended - self.unended) / max(self.at - earlier.at, 1e-6)


def drain(
    contender: Contender,
    step: Step,
    queued: int,
    *,
    warm_up: int = 0,
    until: int = 0,
    completed: int | None = None,
    workers: int = 1,
    on_poll: OnPoll = lambda _worker, _unended: None,
) -> float:
    """Start workers on a full queue and wait until they have drained it; return the jobs a second.

    Starting an interpreter and connecting do not count. With one worker the time begins with its first job. With
    several it begins when each has begun a job, and the jobs that have ended by then do not count.

    Args:
        queued: jobs that have not ended when they start.
        warm_up: jobs that have ended before the time begins.
        until: jobs that are left when the time ends.
        completed: jobs that the library must list as completed in the end (default: it is not asked).
        on_poll: is called at each poll.

    Raises:
        ContenderError: a worker died, nothing went on for a long time, or fewer jobs have completed.
    """
    with ExitStack() as running:
        started = [running.enter_context(contender.worker()) for _ in range(workers)]
        began_at = [worker.wait_for("began") for worker in started]
        monitor = _Monitor(contender, step, started, queued, on_poll)
        start = _Sample(began_at[0], queued) if workers == 1 else monitor.sample()
        if warm_up:
            start = monitor.wait_until(queued - warm_up, start)
        if start.unended <= until:
            raise ContenderError(f"{queued} jobs are too few: they had ended before the time began")
        end = monitor.wait_until(until, start)
        if completed is not None:
            contender.check_completed(completed)
        return end.speed_since(start)


@dataclass(frozen=True)
class _Monitor:
    """Polls a queue that workers drain."""

    contender: Contender
    step: Step
    workers: list[Process]
    queued: int
    on_poll: OnPoll

    def sample(self) -> _Sample:
        return _Sample(time.monotonic(), self.contender.unended(self.queued))

    def wait_until(self, left: int, start: _Sample) -> _Sample:
        """Wait until at most `left` jobs have not ended. Polls are frequent only towards the end."""
        last_progress = start
        while True:
            now = self.sample()
            for worker in self.workers:
                worker.check()
            self.on_poll(self.workers[0], now.unended)
            if now.unended <= left:
                return now
            if now.unended < last_progress.unended:
                last_progress = now
            elif now.at - last_progress.at > STALL_TIMEOUT:
                raise ContenderError(f"{now.unended} jobs have not ended, and nothing went on for {STALL_TIMEOUT:g} s")
            speed = now.speed_since(start)
            self.step.now(f"{now.unended - left:,} jobs left, {speed:,.0f}/s")
            expected = (now.unended - left) / speed if speed > 0 else 0.0
            time.sleep(min(max(expected / 2, _SHORTEST_PAUSE), now.at - start.at + _SHORTEST_PAUSE, _LONGEST_PAUSE))

"""How fast workers run down a queue: from their first job's first line to the last result."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from bench.contenders import Contender
from bench.process import PATIENCE, ContenderError, Process
from bench.progress import Step

_SHORTEST_PAUSE, _LONGEST_PAUSE = 0.002, 0.25  # seconds between two looks; asking costs the one who is asked

Watch = Callable[[Process, int], None]
"""Gets the worker, and how many jobs have not ended."""


@dataclass(frozen=True)
class _Look:
    """How far it was, and when, by the monotonic clock."""

    at: float
    unended: int

    def speed_since(self, earlier: "_Look") -> float:
        """Jobs a second."""
        return (earlier.unended - self.unended) / max(self.at - earlier.at, 1e-6)


def run_down(
    contender: Contender,
    step: Step,
    queued: int,
    *,
    warm_up: int = 0,
    to: int = 0,
    completed: int | None = None,
    workers: int = 1,
    watch: Watch = lambda _worker, _unended: None,
) -> float:
    """Start workers on a queue that is full, and wait until they have run it down; jobs a second.

    Starting an interpreter and connecting do not count: with one worker the time begins with its first job, with
    several when each has begun, less what was done by then.

    Args:
        queued: jobs that have not ended when they start.
        warm_up: jobs that have ended before the time begins.
        to: jobs that are left when the time ends.
        completed: jobs that the library must list as completed in the end (default: it is not asked).
        watch: is called now and then.

    Raises:
        ContenderError: a worker died, nothing went on for a long time, or fewer jobs have completed.
    """
    with ExitStack() as running:
        started = [running.enter_context(contender.worker()) for _ in range(workers)]
        began_at = [worker.told("began") for worker in started]
        track = _Track(contender, step, started, queued, watch)
        start = _Look(began_at[0], queued) if workers == 1 else track.look()
        if warm_up:
            start = track.until(queued - warm_up, start)
        if start.unended <= to:
            raise ContenderError(f"{queued} jobs are too few: they had ended before the time began")
        end = track.until(to, start)
        if completed is not None:
            contender.check_completed(completed)
        return end.speed_since(start)


@dataclass(frozen=True)
class _Track:
    """A queue that workers run down."""

    contender: Contender
    step: Step
    workers: list[Process]
    queued: int
    watch: Watch

    def look(self) -> _Look:
        return _Look(time.monotonic(), self.contender.unended(self.queued))

    def until(self, left: int, start: _Look) -> _Look:
        """Wait until no more than `left` jobs are; looking often only towards the end."""
        last_progress = start
        while True:
            now = self.look()
            for worker in self.workers:
                worker.check()
            self.watch(self.workers[0], now.unended)
            if now.unended <= left:
                return now
            if now.unended < last_progress.unended:
                last_progress = now
            elif now.at - last_progress.at > PATIENCE:
                raise ContenderError(f"{now.unended} jobs have not ended, and nothing went on for {PATIENCE:g} s")
            speed = now.speed_since(start)
            self.step.now(f"{now.unended - left:,} jobs left, {speed:,.0f}/s")
            expected = (now.unended - left) / speed if speed > 0 else 0.0
            time.sleep(min(max(expected / 2, _SHORTEST_PAUSE), now.at - start.at + _SHORTEST_PAUSE, _LONGEST_PAUSE))

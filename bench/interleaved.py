"""Two programs that live at the same time and run in alternating slices of time.

The speed of a machine varies over seconds. Interleaved programs meet the same variations, so their ratio is more
precise than that of two runs, one after the other.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bench.contender_api import CONCURRENCY
from bench.contenders import Contender
from bench.context import Results
from bench.figures import Figures
from bench.process import STALL_TIMEOUT, ContenderError, Process
from bench.progress import Step
from bench.servers import PostgresServer

_POLL_INTERVAL = 0.002  # seconds
_SECOND_WARM_UP = 2 * CONCURRENCY  # more than can have been in flight when it was stopped


@dataclass(frozen=True)
class WorkCounter:
    """Counts what a program does, as its server sees it."""

    done: Callable[[], int]
    """How much is done so far."""
    is_busy: Callable[[], bool]
    """Whether the server still works on what it was sent."""


def count_rows(postgres: PostgresServer) -> WorkCounter:
    """Count the rows that are added to a database."""
    return WorkCounter(lambda: postgres.number("SELECT count(*) FROM bench_rows"), lambda: postgres.is_busy)


def count_jobs(contender: Contender, queued: int) -> WorkCounter:
    """Count the jobs that have ended, of `queued`. Redis has finished all else by the time it answers."""
    return WorkCounter(lambda: queued - contender.unended(queued), lambda: False)


class InterleavedProgram:
    """A program with servers of its own, which is stopped outside its slices.

    Args:
        name: for error messages.
    """

    def __init__(self, process: Process, work: WorkCounter, name: str) -> None:
        self._process = process
        self._work = work
        self._name = name
        self._done = 0
        self._seconds = 0.0

    @property
    def speed(self) -> float:
        """What it has done a second, over all its slices.

        Raises:
            ContenderError: it has done nothing.
        """
        if self._done == 0:
            raise self._error(f"did nothing in {self._seconds:.1f} s")
        return self._done / self._seconds

    def warm_up(self, more: int) -> None:
        """Let it do `more` work that does not count."""
        enough = self._work.done() + more
        self._process.resume()
        self._wait_until(lambda: self._work.done() >= enough, f"did not do {more} more")
        self._process.pause()
        self._wait_until_quiet()

    def run_slice(self, seconds: float) -> None:
        """Let it run for `seconds`, and count what it does."""
        before, begun = self._work.done(), time.monotonic()
        self._process.resume()
        time.sleep(seconds)
        self._process.pause()
        self._seconds += time.monotonic() - begun
        self._wait_until_quiet()
        self._done += self._work.done() - before

    def _wait_until_quiet(self) -> None:
        """Wait until its server has finished what it was sent: it counts, and must not slow down the other program."""
        self._wait_until(lambda: not self._work.is_busy(), "did not let its database become idle")
        self._check()

    def _wait_until(self, reached: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + STALL_TIMEOUT
        while not reached():
            self._check()
            if time.monotonic() > deadline:
                raise self._error(f"{otherwise} within {STALL_TIMEOUT:g} s")
            time.sleep(_POLL_INTERVAL)

    def _check(self) -> None:
        try:
            self._process.check()
        except ContenderError as error:
            raise ContenderError(f"{self._name}: {error}") from None

    def _error(self, problem: str) -> ContenderError:
        return ContenderError(f"{self._name} {problem}; {self._process.stderr_tail()}")


class SpeedPair(NamedTuple):
    """The speeds of both programs in one round, in jobs a second."""

    ours: float
    beside: float

    def __str__(self) -> str:
        return f"{self.ours:,.0f} jobs/s, beside it {self.beside:,.0f}: {self.ours / self.beside:.2f}"


def figures(results: Results[SpeedPair], beside: Mapping[str, str]) -> dict[str, Figures]:
    """Each program's speeds in all rounds. `beside` maps an entrant to what it was measured beside."""
    speeds: dict[str, Figures] = {}
    for ours, rounds in results.values.items():
        speeds[ours] = Figures.of(one.ours for one in rounds)
        speeds[beside[ours]] = Figures.of(one.beside for one in rounds)
    return speeds


def run_interleaved(
    first: InterleavedProgram, second: InterleavedProgram, *, slices: int, seconds: float, step: Step
) -> None:
    """Give each program this many slices. The one that begins alternates."""
    order = [first, second]
    for runner in order:
        # It was stopped while the other one started, and a timeout of a connection may have passed meanwhile.
        runner.warm_up(_SECOND_WARM_UP)
    for number in range(slices):
        step.now(f"slice {number + 1} of {slices}")
        for runner in order:
            runner.run_slice(seconds)
        order.reverse()

"""Two programs that live at the same time and run by turns, a moment each.

A machine's moods last for some seconds: so both have the same ones, and their ratio is known better than from two runs,
one after the other.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from bench.contenders import Contender
from bench.figures import Figures
from bench.process import PATIENCE, ContenderError, Process
from bench.progress import Step
from bench.servers import PostgresServer
from bench.stage import Results
from bench.yardstick import CONCURRENCY

_PAUSE = 0.002  # seconds between two looks
_ONCE_MORE = 2 * CONCURRENCY  # more than can have been on their way when it was stopped


@dataclass(frozen=True)
class Work:
    """What a program does, as the server sees it that it does it on."""

    done: Callable[[], int]
    """How many so far."""
    is_going_on: Callable[[], bool]
    """Whether the server is still at what it was sent."""


def rows(postgres: PostgresServer) -> Work:
    """Rows, which are added to a database."""
    return Work(lambda: postgres.number("SELECT count(*) FROM bench_rows"), lambda: postgres.is_at_work)


def jobs(contender: Contender, queued: int) -> Work:
    """Jobs, of so many that were queued; by the time Redis answers, it is at nothing else."""
    return Work(lambda: queued - contender.unended(queued), lambda: False)


class Runner:
    """A program with servers of its own, which is stopped while it is not its turn.

    Args:
        name: what it is called where it fails.
    """

    def __init__(self, process: Process, work: Work, name: str) -> None:
        self._process = process
        self._work = work
        self._name = name
        self._done = 0
        self._seconds = 0.0

    @property
    def speed(self) -> float:
        """What it has done a second, over all its turns.

        Raises:
            ContenderError: it has done nothing.
        """
        if self._done == 0:
            raise self._error(f"did nothing in {self._seconds:.1f} s")
        return self._done / self._seconds

    def warm_up(self, more: int) -> None:
        """Let it do so much, or so much more, that does not count."""
        enough = self._work.done() + more
        self._process.resume()
        self._wait_until(lambda: self._work.done() >= enough, f"did not do {more} more")
        self._process.pause()
        self._come_to_rest()

    def take_turn(self, seconds: float) -> None:
        """Let it run for so long."""
        before, begun = self._work.done(), time.monotonic()
        self._process.resume()
        time.sleep(seconds)
        self._process.pause()
        self._seconds += time.monotonic() - begun
        self._come_to_rest()
        self._done += self._work.done() - before

    def _come_to_rest(self) -> None:
        """What it has sent by now counts, and no server is to be at it while it is the other one's turn."""
        self._wait_until(lambda: not self._work.is_going_on(), "did not let its database come to rest")
        self._check()

    def _wait_until(self, reached: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            self._check()
            if time.monotonic() > deadline:
                raise self._error(f"{otherwise} within {PATIENCE:g} s")
            time.sleep(_PAUSE)

    def _check(self) -> None:
        try:
            self._process.check()
        except ContenderError as error:
            raise ContenderError(f"{self._name}: {error}") from None

    def _error(self, problem: str) -> ContenderError:
        return ContenderError(f"{self._name} {problem}; {self._process.last_words()}")


class Speeds(NamedTuple):
    """Of both in one round, a second."""

    ours: float
    beside: float

    def __str__(self) -> str:
        return f"{self.ours:,.0f} jobs/s, beside it {self.beside:,.0f}: {self.ours / self.beside:.2f}"


def figures(results: Results[Speeds], beside: Mapping[str, str]) -> dict[str, Figures]:
    """Each one's speeds in all rounds; `beside` says what each entrant was measured beside."""
    speeds: dict[str, Figures] = {}
    for ours, rounds in results.values.items():
        speeds[ours] = Figures.of(one.ours for one in rounds)
        speeds[beside[ours]] = Figures.of(one.beside for one in rounds)
    return speeds


def take_turns(first: Runner, second: Runner, *, turns: int, seconds: float, step: Step) -> None:
    """Let each have so many turns; who begins changes from one to the next."""
    order = [first, second]
    for runner in order:
        # It has stood still while the other one started, and may have lost its patience with a server meanwhile.
        runner.warm_up(_ONCE_MORE)
    for turn in range(turns):
        step.now(f"turn {turn + 1} of {turns}")
        for runner in order:
            runner.take_turn(seconds)
        order.reverse()

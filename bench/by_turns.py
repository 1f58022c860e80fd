"""Two programs that live at the same time and run by turns, a moment each.

A machine's moods last for some seconds: so both have the same ones, and their ratio is known better than from two runs,
one after the other.
"""

import time
from collections.abc import Callable

from bench.process import PATIENCE, ContenderError, Process
from bench.progress import Step
from bench.servers import PostgresServer

_PAUSE = 0.002  # seconds between two looks


class Runner:
    """A program that adds rows to a database of its own, and is stopped while it is not its turn.

    Args:
        name: what it is called where it fails.
    """

    def __init__(self, process: Process, postgres: PostgresServer, name: str) -> None:
        self._process = process
        self._postgres = postgres
        self._name = name
        self._rows = 0
        self._seconds = 0.0

    @property
    def speed(self) -> float:
        """Rows a second, over all its turns.

        Raises:
            ContenderError: there were none.
        """
        if self._rows == 0:
            raise self._error(f"added no row in {self._seconds:.1f} s")
        return self._rows / self._seconds

    def warm_up(self, rows: int) -> None:
        """Let it add its first rows."""
        self._wait_until(lambda: self._count() >= rows, f"did not add {rows} rows")
        self._process.pause()
        self._come_to_rest()

    def take_turn(self, seconds: float) -> None:
        """Let it run for so long."""
        before, begun = self._count(), time.monotonic()
        self._process.resume()
        time.sleep(seconds)
        self._process.pause()
        self._seconds += time.monotonic() - begun
        self._come_to_rest()
        self._rows += self._count() - before

    def _come_to_rest(self) -> None:
        """What it has sent by now counts, and PostgreSQL is not to be at it while it is the other one's turn."""
        self._wait_until(lambda: not self._postgres.is_at_work, "did not let its database come to rest")
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

    def _count(self) -> int:
        return self._postgres.number("SELECT count(*) FROM bench_rows")


def take_turns(first: Runner, second: Runner, *, turns: int, seconds: float, step: Step) -> None:
    """Let each have so many turns; who begins changes from one to the next."""
    order = [first, second]
    for turn in range(turns):
        step.now(f"turn {turn + 1} of {turns}")
        for runner in order:
            runner.take_turn(seconds)
        order.reverse()

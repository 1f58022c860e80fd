"""Two programs that live at the same time and run by turns, a moment each.

A machine's moods last for some seconds, and are those of both then. So a ratio is known better than from two runs, one
after the other.
"""

import time
from collections.abc import Callable

from bench.process import PATIENCE, ContenderError, Process
from bench.progress import Step
from bench.servers import PostgresServer

_PAUSE = 0.002  # seconds between two looks


class Runner:
    """A program that adds rows to a database of its own, and is stopped while it is not its turn."""

    def __init__(self, process: Process, postgres: PostgresServer) -> None:
        self._process = process
        self._postgres = postgres
        self._rows = 0
        self._seconds = 0.0

    @property
    def speed(self) -> float:
        """Rows a second, over all its turns.

        Raises:
            ContenderError: there were none.
        """
        if self._rows == 0:
            raise ContenderError(f"it added no row in {self._seconds:.1f} s; {self._process.last_words()}")
        return self._rows / self._seconds

    def warm_up(self, rows: int) -> None:
        """Let it add its first rows."""
        self._wait_until(lambda: self._count() >= rows, f"it did not add {rows} rows")
        self._stop()

    def take_turn(self, seconds: float) -> None:
        """Let it run for so long."""
        before, begun = self._count(), time.monotonic()
        self._process.resume()
        time.sleep(seconds)
        self._process.pause()
        self._seconds += time.monotonic() - begun
        self._stop()
        self._rows += self._count() - before

    def _stop(self) -> None:
        """What it has sent by now is its own, and its server is not to be at it while it is the other one's turn."""
        self._process.pause()
        self._wait_until(lambda: not self._postgres.is_at_work, "its database did not come to rest")

    def _wait_until(self, reached: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not reached():
            self._process.check()
            if time.monotonic() > deadline:
                raise ContenderError(f"{otherwise} within {PATIENCE:g} s; {self._process.last_words()}")
            time.sleep(_PAUSE)

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

"""How far the measurements are: a line for each that has ended, and what goes on meanwhile where somebody watches."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status

_SECONDS_BETWEEN_LINES = 30.0


class Step:
    """One measurement that goes on."""

    def __init__(self, title: str, console: Console, status: Status | None) -> None:
        self._title = title
        self._console = console
        self._status = status
        self._said_at = time.monotonic()

    def now(self, what: str) -> None:
        """Show what goes on: at once on a terminal, elsewhere now and then."""
        if self._status is not None:
            self._status.update(escape(f"{self._title}: {what}"))
        elif time.monotonic() - self._said_at > _SECONDS_BETWEEN_LINES:
            self._said_at = time.monotonic()
            self._console.print(f"  {self._title}: {what}", markup=False)


class Progress:
    """Tells of the steps of one run."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()

    def say(self, line: str) -> None:
        elapsed = time.monotonic() - self._started
        self._console.print(f"{elapsed // 60:4.0f}:{elapsed % 60:02.0f}  {line}", markup=False)

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """A measurement; `say` what came of it afterwards."""
        if not self._console.is_interactive:
            yield Step(title, self._console, None)
            return
        with self._console.status(escape(title)) as status:
            yield Step(title, self._console, status)

"""Where a supervisor's progress line goes: the last line of a terminal, or the log.

On a terminal the workers print through their supervisor, so that the line stays below what they say.
"""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar, Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from worker.logs import log_without_arq

logger = logging.getLogger("worker")

_CHUNK = 65536  # bytes


class Display(Protocol):
    """A place for the line."""

    interval: ClassVar[float]
    """Seconds between two lines."""
    output: ClassVar[int | None]
    """What the workers print to, as for `subprocess.Popen`."""

    def show(self, line: str) -> None:
        """This is how far they are."""

    async def copy(self, stream: asyncio.StreamReader) -> None:
        """Print what a worker prints, until it ends."""


class InLog:
    """A log line now and then, if it says something new; the workers print for themselves."""

    interval = 10.0
    output = None

    def __init__(self) -> None:
        self._last = ""

    def show(self, line: str) -> None:
        if line != self._last:
            logger.info(line)
        self._last = line

    async def copy(self, stream: asyncio.StreamReader) -> None:
        raise NotImplementedError("they were given no pipes")


class OnTerminal:
    """The last line, again and again."""

    interval = 0.5
    output = subprocess.PIPE

    def __init__(self, live: Live) -> None:
        self._live = live

    def show(self, line: str) -> None:
        self._live.update(Text(line, style="bold", no_wrap=True, overflow="ellipsis"), refresh=True)

    async def copy(self, stream: asyncio.StreamReader) -> None:
        rest = b""
        while chunk := await stream.read(_CHUNK):
            lines, newline, rest = (rest + chunk).rpartition(b"\n")
            self._print(lines + newline)
        self._print(rest)

    def _print(self, output: bytes) -> None:
        if output:
            self._live.console.out(output.decode(errors="replace"), end="", highlight=False)


@contextmanager
def display() -> Iterator[Display]:
    """The terminal, if standard error is one. What is logged within goes there too."""
    if not sys.stderr.isatty():
        log_without_arq()
        yield InLog()
        return
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        log_without_arq()
        yield OnTerminal(live)

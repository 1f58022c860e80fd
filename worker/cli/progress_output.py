"""The output of a supervisor's progress line: the last line of a terminal, or the log.

On a terminal the workers print through their supervisor, so that the progress line stays below their output.
"""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.text import Text

from db.text.printable import printable
from worker.process.logs import LogFormat, log_without_arq

logger = logging.getLogger("worker")

_CHUNK = 65536  # bytes
_INTERVAL = 10.0  # seconds between two lines in the log


class Display(Protocol):
    """An output for the progress line."""

    @property
    def output(self) -> int | None:
        """The descriptor that the workers print to; None: the supervisor's own output."""

    def show(self, line: str) -> None:
        """Show the progress line."""

    def open(self) -> None:
        """Begin to copy the workers' output, on the running event loop."""

    def close(self) -> None:
        """Copy the rest of the workers' output."""


class InLog:
    """Logs the progress line every ten seconds if it has changed. The workers print to the supervisor's output."""

    output = None

    def __init__(self) -> None:
        self._last = ""
        self._next = time.monotonic() + _INTERVAL

    def show(self, line: str) -> None:
        if line != self._last and time.monotonic() >= self._next:
            logger.info(line)
            self._last = line
            self._next = time.monotonic() + _INTERVAL

    def open(self) -> None: ...

    def close(self) -> None: ...


class OnTerminal:
    """Redraws the last line of the terminal. The workers share one pipe, so that no line of theirs is split."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._pipe, self.output = os.pipe()
        self._rest = b""

    def show(self, line: str) -> None:
        self._live.update(Text(printable(line), style="bold", no_wrap=True, overflow="ellipsis"), refresh=True)

    def open(self) -> None:
        os.set_blocking(self._pipe, False)
        asyncio.get_running_loop().add_reader(self._pipe, self._copy)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pipe)
        os.close(self.output)
        with suppress(BlockingIOError):  # a process that a task has left behind keeps the pipe open
            while self._copy():
                pass
        self._print(self._rest)
        os.close(self._pipe)

    def _copy(self) -> bool:
        """Print the complete lines that the pipe holds; False at its end."""
        chunk = os.read(self._pipe, _CHUNK)
        lines, newline, self._rest = (self._rest + chunk).rpartition(b"\n")
        self._print(lines + newline)
        return bool(chunk)

    def _print(self, output: bytes) -> None:
        if output:
            self._live.console.out(output.decode(errors="replace"), end="", highlight=False)


@contextmanager
def display(log_format: LogFormat | None) -> Iterator[Display]:
    """The terminal, if standard error is one; else the log. Log lines inside the block go to the same output."""
    if not sys.stderr.isatty():
        log_without_arq(log_format)
        yield InLog()
        return
    with Live(console=Console(stderr=True), auto_refresh=False, transient=True) as live:
        log_without_arq(log_format)
        yield OnTerminal(live)

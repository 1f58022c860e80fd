"""``Process``: one program of a contender, for the length of a ``with`` block, and what it reports."""

import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

import psutil

from bench.environments import PROJECT
from worker.embedded.watchdog import Watchdog

STALL_TIMEOUT = 60.0
"""Seconds without any progress after which a contender is given up."""


class ContenderError(Exception):
    """A contender did not do what it was asked to; one line says what it did."""


class Process:
    """A program in the background.

    1. Leaving the block kills it, and what it has started: there is nothing in it worth saving.
    2. If this process is killed, a watchdog kills it.
    3. Its reports (see `bench.contender_api`) are kept in order until they are read.
    """

    def __init__(self, command: Sequence[str], settings: Mapping[str, str]) -> None:
        self._command = list(command)
        self._settings = dict(settings)
        self._reports: SimpleQueue[tuple[str, float] | None] = SimpleQueue()

    def __enter__(self) -> Self:
        self._errors = tempfile.TemporaryFile()
        self._watchdog = Watchdog(signal.SIGKILL)
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            self._command,
            cwd=PROJECT,
            env=_environment() | self._settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,  # a Ctrl-C in the terminal is for us, and we kill it
        )
        self._watchdog.end(self._process.pid)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._listener.join()
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        self._process.stdout.close()
        self._watchdog.dismiss()
        self._errors.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def pause(self) -> None:
        """Stop it until it is resumed. It has stopped when this returns; its connections stay open."""
        os.killpg(self._process.pid, signal.SIGSTOP)
        while psutil.Process(self._process.pid).status() not in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE):
            time.sleep(0.001)  # a busy machine takes a while to deliver the signal

    def resume(self) -> None:
        os.killpg(self._process.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it and its children as a crash would."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def wait_for(self, what: str, timeout: float = STALL_TIMEOUT) -> float:
        """Wait for the next report of `what`; return its value.

        Raises:
            ContenderError: it ended, or did not report it within `timeout` seconds.
        """
        deadline = time.monotonic() + timeout
        while True:
            try:
                report = self._reports.get(timeout=max(deadline - time.monotonic(), 0.0))
            except Empty:
                raise ContenderError(f"it did not report {what!r} within {timeout:g} s; {self.stderr_tail()}") from None
            if report is None:
                raise ContenderError(f"it ended with exit code {self._process.wait()}; {self.stderr_tail()}")
            if report[0] == what:
                return report[1]

    def poll(self, what: str) -> float | None:
        """The value of the next report of `what` that is already there, or None."""
        with suppress(Empty):
            while report := self._reports.get_nowait():
                if report[0] == what:
                    return report[1]
        return None

    def check(self) -> None:
        """Raise `ContenderError` if it has ended."""
        if self._process.poll() is not None:
            raise ContenderError(f"it ended with exit code {self._process.returncode}; {self.stderr_tail()}")

    def stderr_tail(self, lines: int = 3) -> str:
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        return "the end of its stderr: " + (" | ".join(said[-lines:]) or "none")

    def _listen(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        for line in self._process.stdout:
            what, _, value = line.strip().partition(" ")
            with suppress(ValueError):  # something that a library prints
                self._reports.put((what, float(value)))
        self._reports.put(None)


def _environment() -> dict[str, str]:
    """Ours, without what would change a contender's settings."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("WORKER_", "OBAN_", "BENCH_"))}

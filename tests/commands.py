"""Commands of the project as real processes, for the length of a block."""

import os
import pty
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.waiting import eventually

REPOSITORY = Path(__file__).parents[1]

_TIMEOUT = 60.0  # seconds: a busy machine takes a while to import everything, and its disk may stand still


def bare_environment(**variables: str) -> dict[str, str]:
    """What a command needs to find the project, and these variables."""
    return {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", **variables}


class Command:
    """``python -m <arguments>`` in a folder, with nothing but this environment. What it leaves behind is killed.

    Args:
        terminal: it runs on a terminal of its own.
    """

    def __init__(self, *arguments: str, folder: Path, environment: Mapping[str, str], terminal: bool = False) -> None:
        self._command = [sys.executable, "-m", *arguments]
        self._folder = folder
        self._environment = bare_environment(**environment)
        self._terminal = terminal
        self._started: subprocess.Popen[bytes] | None = None
        self._descendants: set[psutil.Process] = set()
        self._text = b""

    def __enter__(self) -> Self:
        if self._terminal:
            self._output, output = pty.openpty()
            os.set_blocking(self._output, False)
        else:
            output, name = tempfile.mkstemp()
            self._output = os.open(name, os.O_RDONLY)
            Path(name).unlink()
        self._started = subprocess.Popen(
            self._command,
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # a group of its own, as a shell gives it
        )
        os.close(output)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        left = [*self.descendants(), *self._descendants]
        self._process.kill()
        self._process.wait()
        for process in left:
            if process.is_running():
                process.kill()
        psutil.wait_procs(left, timeout=5)
        if kind is not None:
            print(self.output)  # noqa: T201 - pytest shows it with the failure
        os.close(self._output)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        """All that it has printed so far."""
        try:
            while chunk := os.read(self._output, 65536):
                self._text += chunk
        except (BlockingIOError, OSError):  # a terminal with nothing to read, or that nobody writes to any more
            pass
        return self._text.decode(errors="replace")

    def descendants(self) -> list[psutil.Process]:
        """The processes that it has started, and theirs."""
        try:
            found = psutil.Process(self.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            found = []
        self._descendants.update(found)
        return found

    def workers(self) -> list[psutil.Process]:
        """Those of them that are ``python -m worker`` again, oldest first."""
        found = []
        for process in self.descendants():
            try:
                command = process.cmdline()
            except psutil.NoSuchProcess:
                continue
            if command[1:3] == ["-m", "worker"]:
                found.append(process)
        return sorted(found, key=lambda process: process.create_time())

    def send(self, number: signal.Signals) -> None:
        """Send the process, and it alone, a signal."""
        self._process.send_signal(number)

    async def says(self, text: str, times: int = 1) -> str:
        """Wait until it has printed `text` so often; all that it has printed."""

        def said() -> bool:
            assert self._process.poll() is None or self.output.count(text) >= times, self.output
            return self.output.count(text) >= times

        await eventually(said, timeout=_TIMEOUT)
        return self.output

    async def ends(self) -> int:
        """Wait until it has ended; its exit code."""

        def has_ended() -> bool:
            _ = self.output  # a terminal that nobody reads from holds up whoever writes to it
            return self._process.poll() is not None

        await eventually(has_ended, timeout=_TIMEOUT)
        return self._process.returncode

    @property
    def _process(self) -> "subprocess.Popen[bytes]":
        assert self._started is not None, "use it in a `with` block"
        return self._started


def gone(process: psutil.Process) -> bool:
    """Whether it has ended, buried or not."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE

"""``Post``: where the run keeps a process. It may be killed, frozen or told to stop, and another takes its place."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.chaos.chronicle import stamp
from tests.commands import REPOSITORY, bare_environment
from tests.proxy import Proxy
from worker.embedded.watchdog import Watchdog


class Post:
    """One process at a time: ``python -m <arguments>``.

    1. Leaving the block kills the process; a watchdog does so if this process is killed itself.
    2. `busy` is held by whoever harms it, so that two faults do not meet in it.
    3. What all of its processes print is in `log`.

    Args:
        arguments: of its process, by the name of its life: ``worker-1.3`` is the third at this post.
        proxy: through which it reaches PostgreSQL.
    """

    def __init__(
        self,
        name: str,
        arguments: Callable[[str], list[str]],
        environment: Mapping[str, str],
        proxy: Proxy,
        folder: Path,
    ) -> None:
        self.name = name
        self.proxy = proxy
        self.busy = asyncio.Lock()
        self.log = folder / f"{name}.log"
        self.pids: set[int] = set()
        self._arguments = arguments
        self._environment = bare_environment(**environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._before = 0  # bytes in the log when it was started

    def __enter__(self) -> Self:
        self._watchdog = Watchdog(signal.SIGKILL)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._watchdog.dismiss()

    @property
    def exit_code(self) -> int | None:
        """Of the process, if it has ended."""
        return self._running.poll()

    def start(self) -> None:
        """Fill the post."""
        life = f"{self.name}.{len(self.pids) + 1}"
        with self.log.open("ab") as log:
            log.write(f"--- {stamp()} {life} starts\n".encode())
            log.flush()
            self._before = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._arguments(life)],
                cwd=REPOSITORY,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # a Ctrl-C in the terminal is for us, and we end it
            )
        self._watchdog.end(self._process.pid)
        self.pids.add(self._process.pid)

    def kill(self) -> None:
        """``kill -9``, and wait until it is gone."""
        self._running.kill()
        self._running.wait()

    def send(self, number: signal.Signals) -> None:
        """Send the process, if it has not ended, a signal."""
        self._running.send_signal(number)

    async def told_to_stop(self, patience: float) -> str | None:
        """Send a SIGTERM and wait until it has ended; what was wrong with that, if anything."""
        begins = self.log.stat().st_size == self._before  # and has no signal handlers yet
        self.send(signal.SIGTERM)
        deadline = time.monotonic() + patience
        while (code := self.exit_code) is None:
            if time.monotonic() > deadline:
                self.kill()
                return f"had not ended {patience:g} s after a SIGTERM"
            await asyncio.sleep(0.02)
        ordinary = (0, -signal.SIGTERM) if begins else (0,)
        return None if code in ordinary else f"ended with exit code {code} after a SIGTERM"

    def descendants_left(self) -> list[str]:
        """The command lines of processes that those of this post have started, and that are still there."""
        return [
            " ".join(process.info["cmdline"] or ["?"])
            for process in psutil.process_iter(["pid", "cmdline"])
            if process.pid not in self.pids and (_session(process.pid) in self.pids or self._is_keeper(process))
        ]

    def _is_keeper(self, process: psutil.Process) -> bool:
        """Whether it is one of ours, in a session of its own."""
        words = (process.info["cmdline"] or [""])[-1].partition("keeper of ")
        return words[1] != "" and words[2].isdecimal() and int(words[2]) in self.pids

    @property
    def _running(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "use it in a `with` block"
        return self._process


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None

"""``ManagedProcess``: a process of the run that can be killed, frozen, stopped, and started again."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.chaos.logs import FaultLog, timestamp
from tests.commands import REPOSITORY, bare_environment
from tests.proxy import Proxy
from worker.embedded.watchdog import Watchdog

_STOP_TIMEOUT = 20.0  # seconds from SIGTERM to the end: more than the grace of jobs plus the time to clean up


class ManagedProcess:
    """One process at a time, ``python -m <arguments>``.

    1. It starts with the block and is killed at its end. If this process is killed, a watchdog kills it.
    2. A fault holds `fault_lock`, so that a process has one fault at a time.
    3. All its instances print to `log`.

    Args:
        arguments: makes the arguments from the instance's name: ``worker-1.3`` is the third instance of ``worker-1``.
        proxy: the way to PostgreSQL.
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
        self.fault_lock = asyncio.Lock()
        self.log = folder / f"{name}.log"
        self.pids: set[int] = set()
        self._arguments = arguments
        self._environment = bare_environment(**environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._log_size_at_start = 0  # bytes

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
        """The exit code, if the process has ended."""
        return self._running.poll()

    def start(self) -> None:
        """Start the next instance."""
        instance = f"{self.name}.{len(self.pids) + 1}"
        with self.log.open("ab") as log:
            log.write(f"--- {timestamp()} {instance} starts\n".encode())
            log.flush()
            self._log_size_at_start = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._arguments(instance)],
                cwd=REPOSITORY,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches only this process, which ends that one
            )
        self._watchdog.end(self._process.pid)
        self.pids.add(self._process.pid)

    def kill(self) -> None:
        """Kill the process with SIGKILL and wait until it has ended."""
        self._running.kill()
        self._running.wait()

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if the process has not ended."""
        self._running.send_signal(number)

    async def stop(self) -> str | None:
        """Send a SIGTERM and wait for the end; return what went wrong, if anything."""
        starting = self.log.stat().st_size == self._log_size_at_start  # so it may have no signal handlers
        self.send(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT
        while (code := self.exit_code) is None:
            if time.monotonic() > deadline:
                self.kill()
                return f"had not ended {_STOP_TIMEOUT:g} s after a SIGTERM"
            await asyncio.sleep(0.02)
        expected = (0, -signal.SIGTERM) if starting else (0,)
        return None if code in expected else f"ended with exit code {code} after a SIGTERM"

    async def stop_and_log(self, log: FaultLog) -> None:
        """Stop the process; if that goes wrong, log it as a failure of the run."""
        failure = await self.stop()
        if failure is not None:
            log.append_process_failure(f"{self.name} {failure}")

    def children(self) -> list[str]:
        """The command lines of running processes that its instances have started."""
        return [
            " ".join(process.info["cmdline"] or ["?"])
            for process in psutil.process_iter(["pid", "cmdline"])
            if process.pid not in self.pids and (_session(process.pid) in self.pids or self._is_keeper(process))
        ]

    def _is_keeper(self, process: psutil.Process) -> bool:
        """Whether it is the keeper of one of the instances. A keeper has its own session."""
        words = (process.info["cmdline"] or [""])[-1].partition("keeper of ")
        return words[1] != "" and words[2].isdecimal() and int(words[2]) in self.pids

    @property
    def _running(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None, "use it in a `with` block"
        return self._process


async def stop_all(processes: Iterable[ManagedProcess], log: FaultLog) -> None:
    """Stop all processes at the same time."""
    async with asyncio.TaskGroup() as stopping:
        for process in processes:
            stopping.create_task(process.stop_and_log(log))


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None

"""A child process that cannot outlive its parent: `ChildProcess` in the parent, `ParentLink` in the child.

The child's standard input is a socket to its parent. The system closes the socket however the parent ends, ``kill -9``
included, and the child then stops as after a SIGTERM. (Linux' parent-death signal would be too early: it fires when the
thread that started the child ends.)
"""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
import time
from asyncio.subprocess import Process
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Self

from worker.process.stop_signals import stop_signals_blocked

logger = logging.getLogger("worker")

_STARTED = b"\n"
_EXTRA_TIME = 20.0  # seconds past the grace time that a child without a parent gets


class ChildProcess:
    """A child that runs ``python -m worker ...``.

    1. The child has a process group of its own. A Ctrl-C in the terminal reaches this process only, which passes it on.
    2. Signals that come before the child can handle them wait until it can (`leave_on_signal`).
    3. `started` waits until the child works, `ended` until it has ended.
    """

    def __init__(self, process: Process, link: socket.socket) -> None:
        self._process = process
        self._link = link

    @classmethod
    async def start(
        cls,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Self:
        """Start a child; `stdout` and `stderr` as in `subprocess.Popen` (default: those of this process)."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs, stop_signals_blocked():
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "worker", *arguments),
                stdin=theirs.fileno(),
                stdout=stdout,
                stderr=stderr,
                env=environment,
                process_group=0,
            )
        return cls(process, ours)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def outputs(self) -> list[asyncio.StreamReader]:
        """The pipes that the child writes to, if `start` was given pipes."""
        return [stream for stream in (self._process.stdout, self._process.stderr) if stream is not None]

    def send(self, number: signal.Signals) -> None:
        """Send the child a signal, unless it has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def started(self) -> bool:
        """Wait until the child works; False if it ended first."""
        try:
            return await asyncio.get_running_loop().sock_recv(self._link, 1) == _STARTED
        except OSError:
            return False

    async def ended(self) -> int:
        """Wait for the child's end.

        Returns:
            The exit code as a shell shows it: 128 plus the signal's number if a signal killed the child.
        """
        code = await self._process.wait()
        self._link.close()
        return 128 - code if code < 0 else code


class ParentLink:
    """The link to the process that started this one as a `ChildProcess`."""

    def __init__(self) -> None:
        self._link = socket.socket(fileno=os.dup(0))
        with open(os.devnull) as nothing:  # noqa: PTH123 - for its descriptor
            os.dup2(nothing.fileno(), 0)

    def follow(self, grace: float) -> None:
        """Stop this process when the parent has ended.

        Args:
            grace: seconds that running jobs get to finish.
        """
        threading.Thread(target=self._follow, args=(grace,), name="parent", daemon=True).start()

    def report_started(self) -> None:
        """Tell the parent that this process works."""
        with suppress(OSError):
            self._link.sendall(_STARTED)

    def _follow(self, grace: float) -> None:
        with suppress(OSError):
            while self._link.recv(1):
                pass
        logger.warning("the parent process has ended: stopping")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace + _EXTRA_TIME)
        os._exit(1)

"""A child process that cannot outlive us, seen from both ends.

The child's standard input is a line to its parent. The system closes the line however the parent ends, ``kill -9``
included, and the child then stops as if it had been told to. (Linux' parent-death signal would fire already when the
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

from worker.process.stop_signals import held_back

logger = logging.getLogger("worker")

_STARTED = b"\n"
_ENDING = 20.0  # seconds past the grace time that a child without a parent gets


class ChildProcess:
    """``python -m worker ...``, started by us.

    1. It has a process group of its own: a Ctrl-C in the terminal is for us, who pass it on.
    2. Signals that come before it can handle them wait until it can (`leave_on_signal`).
    3. `started` tells that it works now, `ended` how it ended.
    """

    def __init__(self, process: Process, line: socket.socket) -> None:
        self._process = process
        self._line = line

    @classmethod
    async def start(
        cls,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        *,
        stdout: int | None = None,
        stderr: int | None = None,
    ) -> Self:
        """Start it; `stdout` and `stderr` as in `subprocess.Popen` (default: ours)."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs, held_back():
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
        """What it writes to the pipes it was given."""
        return [stream for stream in (self._process.stdout, self._process.stderr) if stream is not None]

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def started(self) -> bool:
        """Wait until it works; False if it ended before."""
        try:
            return await asyncio.get_running_loop().sock_recv(self._line, 1) == _STARTED
        except OSError:
            return False

    async def ended(self) -> int:
        """Wait for its end; the exit code, as a shell shows it: 128 and the number of the signal, if one killed it."""
        code = await self._process.wait()
        self._line.close()
        return 128 - code if code < 0 else code


class ParentLink:
    """Whoever started this process as a `ChildProcess`."""

    def __init__(self) -> None:
        self._line = socket.socket(fileno=os.dup(0))
        with open(os.devnull) as nothing:  # noqa: PTH123 - a descriptor is what is wanted
            os.dup2(nothing.fileno(), 0)

    def follow(self, grace: float) -> None:
        """From now on, stop when the parent has gone; `grace` is what running jobs get, in seconds."""
        threading.Thread(target=self._follow, args=(grace,), name="parent", daemon=True).start()

    def tell_started(self) -> None:
        """This process works now."""
        with suppress(OSError):
            self._line.sendall(_STARTED)

    def _follow(self, grace: float) -> None:
        with suppress(OSError):
            while self._line.recv(1):
                pass
        logger.warning("the process that started this one is gone")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(grace + _ENDING)
        os._exit(1)

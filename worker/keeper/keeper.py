"""``Keeper``: the worker's side of its keeper process.

1. It starts the process, and another one where that has ended.
2. Where none can be started, the heartbeat's thread keeps the leases alone, and the log says what that means.
3. The process has no descriptor of the worker's but the table, its pipe and standard error, and hears no signal of the
   terminal's. A child that the worker forks makes no difference to it.
"""

import contextlib
import faulthandler
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import hiredis

from worker.aio.backoff import Backoff
from worker.broker.keys import Keys
from worker.broker.scripts import Script
from worker.keeper.process import DISMISSED, KeeperOptions
from worker.keeper.servers import servers_of
from worker.keeper.table import LeaseTable

logger = logging.getLogger("worker")

_PROGRAM = """\
import sys, types
worker = sys.modules["worker"] = types.ModuleType("worker")  # without its __init__, which imports all the rest
worker.__path__ = [sys.argv[1]]
sys.path.append(sys.argv[2])
from worker.keeper.process import main
main(int(sys.argv[3]), int(sys.argv[4]))
"""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds until another one is started
_ENDING = 2.0  # seconds

_WHERE = signal.SIGRTMAX - 1 if sys.platform == "linux" else 0
"""The signal that has this process print where all its threads are, also while something keeps the interpreter."""


class Keeper:
    """Has one keeper process, as far as that can be.

    Args:
        table: what it keeps.
        url: of Redis.
        queues: their names, in the order in which the table counts them.
        lease: seconds that a claim holds without a renewal.
        silence: seconds that the worker may be silent, if no job that runs may take longer.
    """

    def __init__(self, table: LeaseTable, url: str, queues: Sequence[str], *, lease: float, silence: float) -> None:
        self._table = table
        self._url = url
        self._queues = queues
        self._lease = lease
        self._silence = silence
        self._process: subprocess.Popen[bytes] | None = None
        self._one_at_a_time = threading.Lock()
        self._is_dismissed = False
        self._backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        self._start_at = 0.0
        self._alone = ""
        """The reason why there is no keeper, as it was logged."""

    @property
    def pid(self) -> int | None:
        """The keeper's process, while there is one."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    def start(self) -> None:
        """Start the process, once the engine begins."""
        if _WHERE:
            faulthandler.register(_WHERE, file=2)
        self.look_after()

    def look_after(self) -> None:
        """Start another one where it has ended. Call it now and then."""
        with self._one_at_a_time:
            if self._is_dismissed:
                return
            if self._process is not None and self._process.poll() is not None:
                self._has_ended(self._process)
            now = time.monotonic()
            if self._process is None and now >= self._start_at:
                self._start_at = now + self._backoff.next()
                self._start()
            elif self._process is not None and self._table.keeper == self._process.pid:
                self._alone = ""
                if now - self._start_at > _LONGEST_PAUSE:
                    self._backoff.reset()

    def dismiss(self) -> None:
        """End it: the worker ends in order, and nothing is to be given back."""
        with self._one_at_a_time:
            self._is_dismissed = True
            process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None  # noqa: S101 - a pipe
        with contextlib.suppress(OSError), process.stdin as pipe:  # it may have ended
            pipe.write(DISMISSED)
        try:
            process.wait(_ENDING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _has_ended(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None  # noqa: S101 - a pipe
        with contextlib.suppress(OSError):  # where this process has closed all its descriptors
            process.stdin.close()
        self._process = None
        was_killed = process.returncode < 0
        if was_killed or self._table.keeper == process.pid:
            logger.warning("the keeper process ended with code %d; another one is started", process.returncode)
        else:
            self._tell(f"it ended with code {process.returncode}")

    def _start(self) -> None:
        if self._table.descriptor < 0 or not sys.executable or getattr(sys, "frozen", False):
            self._tell("this system, or this interpreter, cannot have one")
            return
        try:
            self._table.attach(json.dumps(self._terms()._asdict()).encode())
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [*(sys.executable, "-I", "-S", "-c", _PROGRAM), *map(str, self._arguments())],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(self._table.descriptor,),
                start_new_session=True,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is: without leases the worker could do nothing
            self._tell(f"{type(error).__name__}: {error}")

    def _arguments(self) -> tuple[Path, Path, int, int, str]:
        """The folders of this package and of hiredis, the table, and a title for process lists."""
        package, others = Path(__file__).parents[1], Path(hiredis.__file__).parents[1]
        return package, others, self._table.descriptor, self._table.size, f"keeper of {os.getpid()}"

    def _terms(self) -> KeeperOptions:
        keys = [Keys.of(name) for name in self._queues]
        return KeeperOptions(
            worker=os.getpid(),
            lease=self._lease,
            silence=self._silence,
            where=_WHERE,
            servers=servers_of(self._url),
            queues=[[one.queue, one.prefix, one.wake] for one in keys],
            renew=Script.named("renew").text,
            release=Script.named("release").text,
        )

    def _tell(self, why: str) -> None:
        """Say, once, that there is none."""
        if self._alone != why:
            self._alone = why
            logger.warning(
                "no keeper process (%s): a thread keeps the leases alone. Code that keeps the interpreter for longer "
                "than a lease loses them, and the jobs of a worker that is killed wait for the end of theirs",
                why,
            )

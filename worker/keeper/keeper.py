"""``Keeper``: start, replace and dismiss the keeper process of this worker.

1. The worker starts a keeper, and another one if the keeper has ended.
2. If no keeper can be started, the heartbeat's thread renews the leases alone, and a warning says what that means.
3. The process inherits only three descriptors of the worker: the table, its pipe and standard error. It ignores signals
   of the terminal. It does not depend on children that the worker forks.
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
worker = sys.modules["worker"] = types.ModuleType("worker")  # without its __init__, which imports everything else
worker.__path__ = [sys.argv[1]]
sys.path.append(sys.argv[2])
from worker.keeper.process import main
main(int(sys.argv[3]), int(sys.argv[4]))
"""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds until another keeper is started
_EXIT_TIMEOUT = 2.0  # seconds

_STACKS_SIGNAL = signal.SIGRTMAX - 1 if sys.platform == "linux" else 0
"""The signal on which this process prints the stacks of all its threads, even while C code blocks the interpreter."""


class Keeper:
    """Keeps one keeper process running, if the system allows it.

    Args:
        table: the jobs whose leases the keeper renews.
        url: of Redis.
        queues: the names of the queues, in the order of their numbers in the table.
        lease: seconds for which a claim holds unless it is renewed.
        silence: seconds for which the worker may be silent, unless the limit of a running job is longer.
    """

    def __init__(self, table: LeaseTable, url: str, queues: Sequence[str], *, lease: float, silence: float) -> None:
        self._table = table
        self._url = url
        self._queues = queues
        self._lease = lease
        self._silence = silence
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._is_dismissed = False
        self._backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        self._start_at = 0.0
        self._logged_reason = ""
        """The last logged reason why there is no keeper."""

    @property
    def pid(self) -> int | None:
        """The id of the keeper's process; None if there is none."""
        process = self._process
        return None if process is None or process.returncode is not None else process.pid

    def start(self) -> None:
        """Start the process. Call this when the engine starts."""
        if _STACKS_SIGNAL:
            faulthandler.register(_STACKS_SIGNAL, file=2)
        self.look_after()

    def look_after(self) -> None:
        """Start another process if the last one has ended. Call this at intervals."""
        with self._lock:
            if self._is_dismissed:
                return
            if self._process is not None and self._process.poll() is not None:
                self._clean_up(self._process)
            now = time.monotonic()
            if self._process is None and now >= self._start_at:
                self._start_at = now + self._backoff.next()
                self._start()
            elif self._process is not None and self._table.keeper == self._process.pid:
                self._logged_reason = ""
                if now - self._start_at > _LONGEST_PAUSE:
                    self._backoff.reset()

    def dismiss(self) -> None:
        """End the keeper. The worker ends in order, and no job is to be given back."""
        with self._lock:
            self._is_dismissed = True
            process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None  # noqa: S101 - a pipe
        with contextlib.suppress(OSError), process.stdin as pipe:  # the keeper may have ended
            pipe.write(DISMISSED)
        try:
            process.wait(_EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _clean_up(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None  # noqa: S101 - a pipe
        with contextlib.suppress(OSError):  # if this process has closed all its descriptors
            process.stdin.close()
        self._process = None
        was_killed = process.returncode < 0
        if was_killed or self._table.keeper == process.pid:
            logger.warning("the keeper process ended with code %d; starting another one", process.returncode)
        else:
            self._warn(f"it ended with code {process.returncode}")

    def _start(self) -> None:
        if self._table.descriptor < 0 or not sys.executable or getattr(sys, "frozen", False):
            self._warn("this system or this interpreter cannot start one")
            return
        try:
            self._table.attach(json.dumps(self._options()._asdict()).encode())
            self._process = subprocess.Popen(  # noqa: S603 - our own program
                [*(sys.executable, "-I", "-S", "-c", _PROGRAM), *map(str, self._arguments())],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                pass_fds=(self._table.descriptor,),
                start_new_session=True,
            )
        except Exception as error:  # noqa: BLE001 - without a keeper, the worker still has to run
            self._warn(f"{type(error).__name__}: {error}")

    def _arguments(self) -> tuple[Path, Path, int, int, str]:
        """The folders of this package and of hiredis, the table, and a title for process lists."""
        package, others = Path(__file__).parents[1], Path(hiredis.__file__).parents[1]
        return package, others, self._table.descriptor, self._table.size, f"keeper of {os.getpid()}"

    def _options(self) -> KeeperOptions:
        keys = [Keys.of(name) for name in self._queues]
        return KeeperOptions(
            worker=os.getpid(),
            lease=self._lease,
            silence=self._silence,
            stacks_signal=_STACKS_SIGNAL,
            servers=servers_of(self._url),
            queues=[[key.queue, key.prefix, key.wake] for key in keys],
            renew=Script.named("renew").text,
            release=Script.named("release").text,
        )

    def _warn(self, why: str) -> None:
        """Log that there is no keeper, once for each reason."""
        if self._logged_reason != why:
            self._logged_reason = why
            logger.warning(
                "no keeper process (%s): a thread renews the leases alone. If code blocks the interpreter for longer "
                "than a lease, the leases are lost. If this worker is killed, its jobs wait until their leases end",
                why,
            )

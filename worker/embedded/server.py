"""`EmbeddedServer`: starts, restarts and stops one server process, and removes its folders."""

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import psutil

from worker.embedded.account import Account
from worker.embedded.port import free_port
from worker.embedded.watchdog import Watchdog
from worker.errors import WorkerError

START_TIMEOUT = 60.0
"""Seconds in which a server must answer: a hundred times the usual time, for busy machines."""

STOP_TIMEOUT = 10.0
"""Seconds that a server gets to stop before it is killed."""

LONGEST_SOCKET_PATH = 99
"""Bytes. Linux takes 107 and macOS 103, and PostgreSQL adds a lock file's suffix."""


class EmbeddedServerError(WorkerError):
    """A server from a wheel cannot be started. The message says why, and what to do instead."""


class EmbeddedServer(ABC):
    """One real server, private to this process.

    1. `start` makes a folder that only this account may enter, starts the server in it, and returns when it answers.
    2. `url` does not change after `kill` and `restart`.
    3. `stop` ends the server and removes the folder. So does the end of this process: `atexit` at exit and after
       Ctrl-C, a watchdog process after a SIGTERM or SIGKILL.

    All methods block. Two threads must not call them at once.

    Args:
        folder: the folder for the server's data, which is not removed. The server then writes to disk as in production.
            Default: a new temporary folder. The server then does not wait for the disk, so that a power cut loses data.
        tcp: listen on a free port of 127.0.0.1 instead of a Unix socket. A proxy can then stand before the server, and
            every user of the machine can connect.
        options: the server's own settings by name, in place of the defaults here.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]
    instead: ClassVar[str]
    """The end of an error message: what to do without this server."""

    def __init__(
        self,
        folder: Path | None = None,
        *,
        tcp: bool = False,
        options: Mapping[str, str | int] | None = None,
    ) -> None:
        self.throw_away = folder is None
        self.options = dict(options or {})
        self.port = self._free_port() if tcp else None
        self._given_folder = folder.absolute() if folder else None
        self._folder: Path | None = None
        self.socket_folder = Path()
        self._made: list[Path] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: Watchdog | None = None
        self._owner = os.getpid()

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL of the server, after the start."""

    @property
    @abstractmethod
    def socket_path(self) -> Path:
        """The Unix socket, in `socket_folder`. With `tcp` there is none."""

    @abstractmethod
    def _prepare(self) -> None:
        """Prepare the folder for the server's first start."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The server's program and arguments. The program must stay in the foreground."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server accepts commands."""

    @abstractmethod
    def _remove_remains(self) -> None:
        """Remove the resources of a killed server that are outside of its folder."""

    def _free_port(self) -> int:
        return free_port()

    @property
    def account(self) -> Account:
        """The account that the server runs under."""
        return Account.own()

    @property
    def folder(self) -> Path:
        """The server's folder. Raises `EmbeddedServerError` before the start."""
        if self._folder is None:
            raise EmbeddedServerError(f"{self.name} is not started: call start() or use it in a `with` block")
        return self._folder

    @property
    def pid(self) -> int:
        """The server's process id. Raises `EmbeddedServerError` unless it runs."""
        if self._process is None:
            raise EmbeddedServerError(f"{self.name} does not run: call start() or restart()")
        return self._process.pid

    def start(self) -> Self:
        """Start the server, unless it is started already, and wait until it answers.

        Raises:
            EmbeddedServerError: the server cannot be started.
        """
        if self._folder is not None:
            return self
        try:
            self._make_folders()
            self._prepare()
            self._launch()
        except OSError as exc:
            self.stop()
            raise self._failed(f"{exc.strerror or exc}: {exc.filename}" if exc.filename else str(exc)) from exc
        except BaseException:
            self.stop()
            raise
        return self

    def kill(self) -> None:
        """Kill the server and its child processes with SIGKILL, to simulate a crash of its machine."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()  # before its children, as the server would react to their death
        for child in children:
            _kill(child)
        process.wait()
        _wait_until_gone(children)

    def restart(self) -> None:
        """Start the server again with the same data and URL, after `kill` or after stopping it in order.

        Raises:
            EmbeddedServerError: the server cannot be started.
        """
        self._end_process()
        self._launch()

    def stop(self) -> None:
        """Stop the server and remove its folders. A second call does nothing."""
        if os.getpid() != self._owner:  # a forked child inherits the object and its atexit hook
            return
        self._end_process()
        if self._folder:
            self._remove_remains()
        if self._watchdog:
            self._watchdog.dismiss()
            self._watchdog = None
        for folder in self._made:
            shutil.rmtree(folder, ignore_errors=True)
        self._made.clear()
        self._folder = None
        atexit.unregister(self.stop)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _make_folders(self) -> None:
        atexit.register(self.stop)
        self._watchdog = Watchdog(self.stop_signal)
        if self._given_folder and not self._given_folder.exists():
            self._given_folder.mkdir(mode=0o700, parents=True)
            self.account.give(self._given_folder)
        self._folder = self._given_folder or self._private_folder(self.account.temporary_folder())
        self.socket_folder = self._folder / "socket"
        self.socket_folder.mkdir(mode=0o700, exist_ok=True)
        self.account.give(self.socket_folder)
        if len(os.fsencode(self.socket_path)) > LONGEST_SOCKET_PATH:
            self.socket_folder = self._private_folder(Path("/tmp"))  # noqa: S108 - a short path on all systems

    def _private_folder(self, parent: Path) -> Path:
        folder = Path(tempfile.mkdtemp(prefix=f"tandem-{self.name.lower()}-", dir=parent))
        self._made.append(folder)
        if self._watchdog:
            self._watchdog.remove(folder)
        self.account.give(folder)
        return folder

    def _launch(self) -> None:
        log = self.folder / "server.log"
        with log.open("ab") as output:
            start_of_log = output.tell()
            self._process = subprocess.Popen(  # noqa: S603 - our own command on a wheel's program
                self._command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A Ctrl-C in the terminal must reach only the owner, which still needs the server while it ends.
                start_new_session=True,
                env=server_environment(),
                user=self.account.uid,
                group=self.account.gid,
                extra_groups=self.account.extra_groups,
            )
        if self._watchdog:
            self._watchdog.end(self._process.pid)
        self._wait_for_answer(self._process, log, start_of_log)

    def _wait_for_answer(self, process: "subprocess.Popen[bytes]", log: Path, start_of_log: int) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self._answers():
            if process.poll() is not None:
                raise self._failed(_tail(log.read_bytes()[start_of_log:]) or f"exit code {process.returncode}")
            if time.monotonic() > deadline:
                raise self._failed(f"no answer in {START_TIMEOUT:g} s")
            time.sleep(0.005)

    def _end_process(self) -> None:
        process = self._process
        if process is None:
            return
        process.send_signal(self.stop_signal)
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def _failed(self, reason: str) -> EmbeddedServerError:
        return EmbeddedServerError(f"{self.name} could not be started ({reason}): {self.instead}")


def server_environment() -> dict[str, str]:
    """The environment of the servers, without the user's PG* and locale variables, which would change them."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def _wait_until_gone(processes: Sequence[psutil.Process]) -> None:
    """Wait until processes have ended that are not children of this one. Their new parent may reap them late."""
    deadline = time.monotonic() + STOP_TIMEOUT
    while any(_lives(process) for process in processes) and time.monotonic() < deadline:
        time.sleep(0.005)


def _lives(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _tail(log: bytes, lines: int = 5) -> str:
    return " | ".join(log.decode(errors="replace").split("\n")[-lines - 1 :]).strip(" |")

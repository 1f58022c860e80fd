"""The life of one server process that belongs to us, from its folder to its last signal."""

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
"""Seconds until a server must answer: a hundred times what it takes, for machines that are busy."""

STOP_TIMEOUT = 10.0
"""Seconds a server gets to stop by itself before it is killed."""

LONGEST_SOCKET_PATH = 99
"""Bytes. Linux takes 107 and macOS 103, and PostgreSQL adds a lock file's suffix."""


class EmbeddedServerError(WorkerError):
    """A server from a wheel could not be started; the message says why and what to do instead."""


class EmbeddedServer(ABC):
    """One real server, private to this process.

    1. `start` makes a folder that only we may enter, starts the server in it and returns once it answers.
    2. `url` stays the same through `kill` and `restart`.
    3. `stop` ends the server and removes the folder. The end of this process does the same: at exit and after
       Ctrl-C by `atexit`, after a SIGTERM or SIGKILL by a watchdog process.

    All methods block; none may be called by two threads at once.

    Args:
        folder: where the server keeps its data, which is not removed; it then writes as a production server does.
            Default: a new temporary folder. Nothing waits for the disk then, so that a power cut loses data.
        tcp: listen on a free port of 127.0.0.1, where proxies can stand in front and any user of the machine may
            connect, instead of a Unix socket.
        options: the server's own settings by name, over our defaults.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals]
    instead: ClassVar[str]
    """What a user without this server can do, as the end of a sentence."""

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
        """How to reach the server, once started."""

    @property
    @abstractmethod
    def socket_path(self) -> Path:
        """The Unix socket, in `socket_folder`; none is there with `tcp`."""

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the server needs before its first start."""

    @abstractmethod
    def _command(self) -> list[str]:
        """The server's program and arguments; it must stay in the foreground."""

    @abstractmethod
    def _answers(self) -> bool:
        """Whether the server accepts work by now."""

    @abstractmethod
    def _remove_remains(self) -> None:
        """Remove what a killed server has left outside of its folder."""

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
            raise EmbeddedServerError(f"{self.name} does not run")
        return self._process.pid

    def start(self) -> Self:
        """Start the server, if it is not started, and wait until it answers. Raises `EmbeddedServerError`."""
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
        """End the server and its child processes with SIGKILL, as a crash of its machine would."""
        process, self._process = self._process, None
        if process is None or process.poll() is not None:
            return
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()  # before its children, whose death it would react to
        for child in children:
            _kill(child)
        process.wait()
        _wait_until_gone(children)

    def restart(self) -> None:
        """Start the server again on the same data and URL, after `kill` or in an orderly way.

        Raises `EmbeddedServerError`.
        """
        self._end_process()
        self._launch()

    def stop(self) -> None:
        """End the server and remove what it has made; once more does nothing."""
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
            self.socket_folder = self._private_folder(Path("/tmp"))  # noqa: S108 - short on all systems, and private

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
                # A Ctrl-C in the terminal is for the owner, who still needs the server while it ends.
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
    """The environment of the servers: none of the user's PG* or locale variables may change what they do."""
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()


def _wait_until_gone(processes: Sequence[psutil.Process]) -> None:
    """Wait for processes that are not our children: whoever inherited them may be slow to bury them."""
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

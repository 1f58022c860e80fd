"""The system account of a server: the account of this process, or an unprivileged one if that is root."""

import os
import pwd
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_UNPRIVILEGED = ("nobody", "daemon", "postgres")
"""Accounts to use in place of root, best first. initdb needs an account with a name, not only a number."""

_ENTER, _READ = 0o001, 0o004


@dataclass(frozen=True)
class Account:
    """The account of a server process. `None` in all fields means the account of this process."""

    uid: int | None = None
    gid: int | None = None
    extra_groups: tuple[()] | None = None

    @classmethod
    def own(cls) -> Self:
        """The account of this process."""
        return cls()

    @classmethod
    def unprivileged(cls) -> Self:
        """The account of this process, or for root one that owns nothing. Raises `LookupError` if there is none."""
        if os.geteuid() != 0:
            return cls.own()
        for name in _UNPRIVILEGED:
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return cls(entry.pw_uid, entry.pw_gid, ())
        raise LookupError(f"there is no account named {' or '.join(_UNPRIVILEGED)}")

    def may_use(self, path: Path) -> bool:
        """Whether the account can surely enter all folders above `path`, and enter and read `path` itself.

        An account that owns nothing has only the rights of everyone. Groups and access lists are ignored, as a wrong
        "no" only costs a copy. Some installers put links into site-packages, so the folders above the link count, too.
        """
        if self.uid is None:
            return True
        status = path.stat()
        mine = status.st_uid == self.uid or status.st_mode & (_ENTER | _READ) == _ENTER | _READ
        above = {*path.absolute().parents, *path.resolve().parents}
        return mine and all(parent.stat().st_mode & _ENTER for parent in above)

    def temporary_folder(self) -> Path:
        """The folder for temporary files if the account can enter it, else a public one."""
        candidates = (tempfile.gettempdir(), "/tmp", "/var/tmp")  # noqa: S108 - only private folders are made there
        return next((Path(folder) for folder in candidates if self.may_use(Path(folder))), Path(candidates[0]))

    def give(self, path: Path) -> None:
        """Make the account the owner of `path`."""
        if self.uid is not None and self.gid is not None:
            shutil.chown(path, self.uid, self.gid)

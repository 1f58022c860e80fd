"""The system account that a server runs under: ours, or an unprivileged one where ours is root."""

import os
import pwd
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

_UNPRIVILEGED = ("nobody", "daemon", "postgres")
"""Accounts to borrow, best first. initdb wants one with a name, so a bare number would not do."""

_ENTER, _READ = 0o001, 0o004


@dataclass(frozen=True)
class Account:
    """Who a server process runs as; `None` in all fields: as we do."""

    uid: int | None = None
    gid: int | None = None
    extra_groups: tuple[()] | None = None

    @classmethod
    def own(cls) -> Self:
        """Our own account."""
        return cls()

    @classmethod
    def unprivileged(cls) -> Self:
        """Our own account unless that is root, else one that owns nothing. Raises `LookupError`."""
        if os.geteuid() != 0:
            return cls.own()
        for name in _UNPRIVILEGED:
            try:
                entry = pwd.getpwnam(name)
            except KeyError:
                continue
            return cls(entry.pw_uid, entry.pw_gid, ())
        raise LookupError(f"no account named {' or '.join(_UNPRIVILEGED)}")

    def may_use(self, path: Path) -> bool:
        """Whether the account surely can enter all folders above `path`, and enter and read `path` itself.

        An account that owns nothing has only what everyone has. A wrong no costs a copy, so groups and
        access lists are not looked at.
        """
        if self.uid is None:
            return True
        path = path.resolve()
        status = path.stat()
        mine = status.st_uid == self.uid or status.st_mode & (_ENTER | _READ) == _ENTER | _READ
        return mine and all(parent.stat().st_mode & _ENTER for parent in path.parents)

    def temporary_folder(self) -> Path:
        """The folder for temporary files, if the account can enter it, or a public one."""
        candidates = (tempfile.gettempdir(), "/tmp", "/var/tmp")  # noqa: S108 - only private folders are made there
        return next((Path(folder) for folder in candidates if self.may_use(Path(folder))), Path(candidates[0]))

    def give(self, path: Path) -> None:
        """Make the account the owner of `path`."""
        if self.uid is not None and self.gid is not None:
            shutil.chown(path, self.uid, self.gid)

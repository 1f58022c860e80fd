"""``Diary``: lines that outlive the processes that write them."""

import os
from pathlib import Path
from typing import Self

_VARIABLE = "CHAOS_DIARY"


class Diary:
    """A file that any number of processes append whole lines to.

    What was written survives a kill -9, as the system has it by then. Only the machine's own end would lose it, and
    that is none of the faults; so nothing waits for the disk.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    @classmethod
    def of_environment(cls) -> Self:
        """The diary that the process was given."""
        return cls(Path(os.environ[_VARIABLE]))

    @property
    def variable(self) -> dict[str, str]:
        """What gives it to a process."""
        return {_VARIABLE: str(self._path)}

    def note(self, line: str) -> None:
        """Write a line, at once and whole."""
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, f"{line}\n".encode())
        finally:
            os.close(descriptor)

    def read(self) -> list[str]:
        """All lines so far."""
        return self._path.read_text().splitlines() if self._path.exists() else []

"""``Finding``: one thing that ``tandem doctor`` has looked at."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    NOTE = "note"
    """Fine for many, and worth knowing."""
    WARNING = "warning"
    """It works now, and will bite."""
    ERROR = "error"
    """Jobs do not run, or get lost."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found, and what to type if it is not fine."""

    level: Level
    subject: str
    """What was looked at, for example ``Redis memory``."""
    text: str
    fix: str = ""

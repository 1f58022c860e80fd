"""``Chronicle``: what was done to whom, and when; each line is in a file at once, and shown by whoever listens."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from tests.chaos.diary import Diary


@dataclass(frozen=True, slots=True)
class Wipe:
    """A time at which Redis lost all that it held. Times are seconds since the epoch."""

    begun: float
    """From when on what was enqueued may or may not be among what was lost."""
    ended: float
    lost: frozenset[str]
    """The ids of the jobs that it held when it was looked at, just before."""

    def may_have_lost(self, job_id: str, begun: float, ended: float) -> bool:
        """Whether a job that was enqueued between two moments may be among what was lost."""
        return job_id in self.lost or (begun <= self.ended and self.begun <= ended)


@dataclass
class Chronicle:
    """Of one run."""

    folder: Path
    say: Callable[[str], None]
    struck: Counter[str] = field(default_factory=Counter)
    """How often each fault was done."""
    spared: Counter[str] = field(default_factory=Counter)
    """How often it was drawn and not done: another one was at its target, or there was no COMMIT to cut."""
    misdeeds: list[str] = field(default_factory=list)
    """Processes that ended by themselves, or not when they were told to."""
    wipes: list[Wipe] = field(default_factory=list)

    def note(self, line: str) -> None:
        """Write down something that happened now."""
        line = f"{stamp()} {line}"
        Diary(self.folder / "faults.log").note(line)
        self.say(line)

    def accuse(self, line: str) -> None:
        """Write down something that should not have happened."""
        self.misdeeds.append(f"{stamp()} {line}")
        self.note(line)


def stamp() -> str:
    """The time, as in the workers' logs, to the millisecond."""
    return datetime.fromtimestamp(time.time()).astimezone().strftime("%H:%M:%S.%f")[:-3]

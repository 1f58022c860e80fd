"""``Journal``: what a producer intends, written down before it acts, and what it has learnt, written down after.

A producer may be killed between the two, or be told nothing by a COMMIT. Then the marker row tells, which each of its
transactions writes about itself.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.chaos.diary import Diary


class Fate(StrEnum):
    """What is meant to become of the enqueueing of a job."""

    COMMITTED = "committed"
    """In a transaction that commits."""
    ROLLED_BACK = "rolled back"
    """In a transaction that is rolled back whole."""
    SAVEPOINT = "rolled back to a savepoint"
    """In a transaction that may commit, but for this."""
    DIRECT = "direct"
    """In no transaction: straight to the queue."""


class Outcome(StrEnum):
    """What a producer was told."""

    DONE = "done"
    REFUSED = "refused"
    """Rolled back, as it was meant to be."""
    UNKNOWN = "unknown"
    """An error, from which nobody can tell."""


@dataclass(frozen=True, slots=True)
class Wish:
    """One job that is asked for."""

    key: str
    task: str
    fate: Fate
    arguments: dict[str, Any]
    job_id: str | None = None
    """Its producer's own id for it, which may be taken: then it is not to run."""
    delay: float = 0.0
    """Seconds until it is due."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One act of a producer: a transaction, or jobs that it enqueues directly. Times are seconds since the epoch."""

    act: str
    wishes: tuple[Wish, ...]
    begun: float
    ended: float | None = None
    """None: it was killed before it was told anything."""
    outcome: Outcome = Outcome.UNKNOWN
    job_ids: dict[str, str] | None = None
    """Of its jobs, as far as it was told."""


class Journal:
    """One producer's."""

    def __init__(self, path: Path) -> None:
        self._diary = Diary(path)

    def intend(self, act: str, wishes: Iterable[Wish]) -> None:
        """Before it acts."""
        self._note(act=act, begun=time.time(), wishes=[asdict(wish) for wish in wishes])

    def learn(self, act: str, outcome: Outcome, job_ids: dict[str, str]) -> None:
        """After it has acted."""
        self._note(act=act, ended=time.time(), outcome=outcome, job_ids=job_ids)

    def _note(self, **record: object) -> None:
        self._diary.note(json.dumps(record))


def read_journals(folder: Path) -> list[Entry]:
    """All acts of all producers whose journals are in `folder`."""
    return [entry for path in sorted(folder.glob("journal-*")) for entry in _read(path)]


def journal_of(folder: Path, producer: str) -> Path:
    """Where a producer's journal is."""
    return folder / f"journal-{producer}"


def _read(path: Path) -> list[Entry]:
    acts: dict[str, dict[str, Any]] = {}
    for line in Diary(path).read():
        record = json.loads(line)
        acts.setdefault(record["act"], {}).update(record)
    return [_entry(record) for record in acts.values()]


def _entry(record: dict[str, Any]) -> Entry:
    wishes = tuple(Wish(**{**wish, "fate": Fate(wish["fate"])}) for wish in record.pop("wishes"))
    outcome = Outcome(record.pop("outcome", Outcome.UNKNOWN))
    return Entry(wishes=wishes, outcome=outcome, **record)

"""``Facts``: what happened, as the servers and the files that were written tell it once all is over."""

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tests.chaos.chronicle import Wipe
from tests.chaos.diary import Diary
from tests.chaos.journal import Entry, read_journals
from tests.chaos.stage import Stage


class Row(NamedTuple):
    """What the ledger knows of one job."""

    id: str
    enqueued_at: int
    task: str
    state: str
    payload: bytes | None
    error: str | None
    tries: int

    @property
    def key(self) -> str | None:
        """The job's key, if its payload is kept."""
        if self.payload is None:
            return None
        key = json.loads(self.payload)["k"].get("key")
        return None if key is None else str(key)


@dataclass(frozen=True)
class Facts:
    """Of one run."""

    entries: Sequence[Entry]
    """What producers intended, and learnt."""
    markers: dict[str, frozenset[str]]
    """The transactions that were committed, with the keys of what each enqueued."""
    effects: dict[str, list[str]]
    """The ids of the jobs that left an effect, one for each time, by key."""
    rows: dict[str, list[Row]]
    """Of the ledger, by key; those that keep no payload are not here."""
    thoughts: Counter[str]
    """How often each job ran that does not use the database, by key."""
    wipes: Sequence[Wipe]


async def gather(stage: Stage, folder: Path, diary: Diary, wipes: Sequence[Wipe]) -> Facts:
    """Ask everybody."""
    effects: dict[str, list[str]] = defaultdict(list)
    rows: dict[str, list[Row]] = defaultdict(list)
    async with stage.database() as database:
        for key, job_id in await database.fetch("SELECT key, job_id FROM effect ORDER BY number"):
            effects[key].append(job_id)
        markers = {name: frozenset(keys) for name, keys in await database.fetch("SELECT transaction, keys FROM marker")}
        for row in map(_row, await database.fetch(f"SELECT {', '.join(Row._fields)} FROM tandem_jobs")):
            if row.key is not None:
                rows[row.key].append(row)
    return Facts(read_journals(folder), markers, dict(effects), dict(rows), Counter(diary.read()), wipes)


def _row(record: Any) -> Row:
    return Row(*record)

"""``Meter``: count what the jobs of one process do.

1. Each job costs a few additions in memory. The engine's `Reporter` writes what has changed to Redis once a second.
2. Tasks of the registry have counts of their own. All others, whose names come from outside, share one row.
3. Counts only grow, so Prometheus reads them as they are. The meter remembers what Redis has.
"""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from worker.broker.metrics import MOST_LATEST
from worker.metrics.counts import BUSY, LANES, add

OTHER_TASKS = "(other)"
"""The name under which the jobs of tasks are counted that the registry does not list."""
ALL_TASKS = ""
"""The name under which Redis has the sum of a queue's tasks."""
WAITED_SUM = LANES
"""The lane of all waiting times, in milliseconds. Rows in Redis do not have it."""

EndedFields = tuple[str, str, str, int, int, int, int, str]
"""The fields of `worker.metrics.records.EndedJob` up to `error`. A plain tuple, as a no-op job pays for it."""

_ZEROS = [0] * (LANES + 1)


@dataclass(slots=True)
class Changes:
    """What has changed in one queue since Redis was last told."""

    queue: str
    rows: dict[str, list[int]]
    """By task, and the sum of all."""
    latest: Sequence[EndedFields]
    seen: dict[str, list[int]]
    """The counts of these tasks when this was made."""


class Meter:
    """Counts the outcomes of a process's jobs.

    Args:
        tasks: the names of the registry's tasks.
    """

    def __init__(self, tasks: Collection[str]) -> None:
        self.tasks = frozenset(tasks)
        self.rows: dict[str, dict[str, list[int]]] = {}
        """The counts since the start, by queue and task, in the lanes of `worker.metrics.counts` and `WAITED_SUM`.

        `BUSY` is in milliseconds.
        """
        self.crashes = 0
        """Deaths of workers during jobs that this process has then ended or put back."""
        self.leases_lost = 0
        """Leases of jobs of this process that had ended or were another worker's."""
        self._told: dict[str, dict[str, list[int]]] = {}
        self._latest: dict[str, deque[EndedFields]] = {}

    def row(self, queue: str, task: str) -> list[int]:
        """The counts of a task, to be increased."""
        name = task if task in self.tasks else OTHER_TASKS
        return self.rows.setdefault(queue, {}).setdefault(name, _ZEROS[:])

    def latest(self, queue: str) -> deque[EndedFields]:
        """The latest ended jobs of a queue without a job row that Redis has not been told of, to be appended to."""
        return self._latest.setdefault(queue, deque(maxlen=MOST_LATEST))

    def changes(self, queue: str) -> Changes:
        """What Redis has to be told about a queue. Then call `confirm`, or `keep` if that failed."""
        told = self._told.get(queue, {})
        seen = {task: row[:] for task, row in self.rows.get(queue, {}).items() if row != told.get(task, _ZEROS)}
        rows = {task: _difference(row, told.get(task, _ZEROS)) for task, row in seen.items()}
        if rows:
            rows[ALL_TASKS] = add(rows.values())
        waiting = self.latest(queue)
        latest = list(waiting)
        waiting.clear()
        return Changes(queue, rows, latest, seen)

    def confirm(self, changes: Changes) -> None:
        """Record that Redis has these changes."""
        self._told.setdefault(changes.queue, {}).update(changes.seen)

    def keep(self, changes: Changes) -> None:
        """Keep changes that Redis has not taken, to tell them later."""
        waiting = self.latest(changes.queue)
        room = MOST_LATEST - len(waiting)
        waiting.extendleft(reversed(changes.latest[-room:] if room else ()))


def _difference(row: list[int], told: list[int]) -> list[int]:
    """What a row of Redis has to grow by. The rest of a second of `BUSY` is told later."""
    difference = [now - then for now, then in zip(row[:LANES], told, strict=False)]
    difference[BUSY] = row[BUSY] // 1000 - told[BUSY] // 1000
    return difference

"""``CronSeries``: the cron slots of a task that are recorded together.

1. The schedules of a task make one series. A time that several of them match is one slot.
2. Schedules with a `job_id` make a series for each id. Their slots share that id, so that only one of their jobs waits
   or runs at a time.
3. Schedules with ``unique=False`` make a series that each worker has for itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from heapq import merge
from itertools import groupby
from typing import Any

from worker.broker.records import CronSlot, series_name, to_ms
from worker.client.schedule import Misfire, Schedule
from worker.message import encode
from worker.new_job import slot_id
from worker.task import Task


@dataclass(frozen=True)
class CronSeries:
    """A task, and those of its schedules whose slots are recorded together."""

    task: Task[..., Any]
    schedules: tuple[Schedule, ...]

    @classmethod
    def of(cls, task: Task[..., Any]) -> "Iterator[CronSeries]":
        """The series of a task. None if it has no schedule."""
        by_kind = sorted(task.schedules, key=_kind)
        return (cls(task, tuple(group)) for _, group in groupby(by_kind, _kind))

    @property
    def job_id(self) -> str | None:
        """The id of all of its jobs. None if each has an id of its own."""
        return self.schedules[0].job_id

    @property
    def is_shared(self) -> bool:
        """Whether the workers queue each slot once between them. Otherwise each worker queues it."""
        return self.job_id is not None or self.schedules[0].unique

    @property
    def name(self) -> str:
        """The name under which the last slot is recorded."""
        return series_name(self.task.name, self.job_id)

    @property
    def misfire(self) -> Misfire:
        return self.schedules[0].misfire

    @property
    def run_at_startup(self) -> bool:
        return any(schedule.run_at_startup for schedule in self.schedules)

    def next_after(self, moment: datetime) -> datetime:
        """The first slot after `moment`, in UTC."""
        return min(schedule.next_after(moment) for schedule in self.schedules)

    def slots_between(self, start: datetime, end: datetime, limit: int) -> tuple[datetime, ...]:
        """The slots after `start` up to and including `end`, in UTC. Only the latest `limit` of them."""
        slots = merge(*(schedule.slots_between(start, end, limit) for schedule in self.schedules))
        return tuple(dict.fromkeys(slots))[-limit:]

    def slot(self, moment: datetime, *, runs: bool) -> CronSlot:
        """The record of a slot, with its job if it is to run."""
        name, at = self.task.name, to_ms(moment)
        payload = encode(name, b"{}", at) if runs else b""
        return CronSlot(name, at, self.job_id or slot_id(name, at), payload, int(self.job_id is not None))


def _kind(schedule: Schedule) -> tuple[str, bool]:
    return schedule.job_id or "", schedule.job_id is None and schedule.unique

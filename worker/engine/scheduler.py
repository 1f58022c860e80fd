"""``Scheduler``: queue each cron slot once, by the first worker that reaches it.

1. Cron slots are computed in UTC and compared with the clock of Redis, as the clocks of workers may differ.
2. While a scheduler runs, it queues every cron slot that passes. It queues late if the event loop was blocked or Redis
   was away.
3. The task's misfire policy decides about cron slots that passed while no worker ran: :mod:`worker.engine.cron_slots`.
4. Skipped cron slots are logged.
5. A task has one series of slots, or several: :mod:`worker.engine.cron_series`. The slots of a series that is not
   shared are queued by each worker from its start on.
6. Cron slots of a paused schedule are recorded as passed, and skipped. The pauses are read only when a slot has passed.
7. A look costs as much as the slots that have passed (:mod:`worker.engine.timetable`). The first look computes the next
   slot of every series, in slices.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any
from uuid import uuid4

from db.text.plural import plural
from worker.aio.time_slices import TimeSlices
from worker.broker.broker import Broker
from worker.broker.records import CronSlot, to_ms
from worker.client.enqueued import count_enqueued
from worker.engine.cron_series import CronSeries
from worker.engine.cron_slots import LedgerSlotHistory, SlotHistory
from worker.engine.timetable import Timetable
from worker.job_ids import new_job_id
from worker.ledger import Ledger
from worker.ledger.pauses import PauseKind, Pauses
from worker.message import encode
from worker.new_job import A_DAY, NewJob, slot_id
from worker.task import Task

logger = logging.getLogger("worker")

_LONGEST_SLEEP = 10.0  # seconds; then the clock of Redis is read again
_LATE = timedelta(minutes=1)  # since the last round; then the slots that other workers have queued are read first
_MOST_SLOTS = 1000  # of one task that are queued in a round: the latest
_TOO_MANY = f"only the latest {_MOST_SLOTS} are queued"
_CHUNK = 500  # slots in one round trip: more would block the event loop, or Redis, for longer than some milliseconds
_MOMENT = timedelta(microseconds=1)  # slots have microseconds

_Passed = tuple[CronSeries, datetime, bool]
"""A cron slot of a series, and whether it is to run. Otherwise it is only recorded."""


@dataclass(slots=True)
class _Found:
    """What a look at the clock has found."""

    slots: list[_Passed] = field(default_factory=list)
    """The cron slots that have passed."""
    upcoming: list[tuple[CronSeries, datetime]] = field(default_factory=list)
    """The next slot of each series that was looked at."""

    def add_by_misfire(self, series: CronSeries, first: datetime, now: datetime) -> None:
        """Add the cron slots from `first` on that the misfire policy lets run.

        Skipped slots are not recorded: another worker may be about to queue the slot of this moment.
        """
        most = {"skip": 0, "once": 1, "all": _MOST_SLOTS}[series.misfire]
        self.add(series, first, now, most, why=f"no worker ran, and misfire is {series.misfire!r}")

    def add(
        self, series: CronSeries, first: datetime, now: datetime, most: int = _MOST_SLOTS, *, why: str = _TOO_MANY
    ) -> None:
        """Add the latest cron slots from the slot `first` on, at most `most`. Skipped ones are logged, with `why`."""
        slots, upcoming = _slots_from(series, first, now, most)
        if first <= now and first not in slots:
            until = slots[0] if slots else now
            logger.warning(
                "task %s: skipped its cron slots from %s until %s: %s",
                series.task.name,
                _format(first),
                _format(until),
                why,
            )
        self.slots += [(series, moment, True) for moment in slots]
        self.upcoming.append((series, upcoming))


def _slots_from(series: CronSeries, first: datetime, now: datetime, most: int) -> tuple[tuple[datetime, ...], datetime]:
    """The latest slots from the slot `first` up to `now`, at most `most`, and the first slot after `now`."""
    if first > now:
        return (), first
    second = series.next_after(first)
    if second > now:  # nearly always: a look comes soon after each slot
        return (first,)[:most], second
    slots = series.slots_between(first - _MOMENT, now, limit=most) if most else ()
    return slots, series.next_after(now)


class Scheduler:
    """Queues the jobs of scheduled tasks.

    Args:
        tasks: all tasks; tasks without a schedule are ignored.
        default_queue: the queue of tasks that name none.
        ledger: records cron slots too, besides Redis (default: Redis alone).
    """

    def __init__(
        self,
        broker: Broker,
        tasks: Mapping[str, Task[..., Any]],
        default_queue: str,
        ledger: Ledger | None = None,
    ) -> None:
        self._broker = broker
        self._slots = SlotHistory(broker) if ledger is None else LedgerSlotHistory(broker, ledger)
        self._unread = [task for task in tasks.values() if task.schedules][::-1]
        self._is_needed = bool(self._unread)
        self._series: list[CronSeries] = []
        self._at_startup: dict[str, Task[..., Any]] = {}
        self._pauses = None if ledger is None else Pauses(ledger.name)
        self._default_queue = default_queue
        self._seen: datetime | None = None
        self._timetable = Timetable()
        self._due: list[tuple[CronSeries, datetime]] = []
        self._id = uuid4().hex  # part of the ids of jobs that each worker queues for itself

    @property
    def has_begun(self) -> bool:
        """Whether the jobs that are due at its start are queued, if there are any."""
        return not self._is_needed or (self._seen is not None and not self._at_startup)

    async def run(self) -> None:
        """Queue cron slots as they pass, for ever."""
        while self._is_needed:
            await self._prepare()
            now = await self._slots.now(self._default_queue)
            await self._look(now)
            await self._run_at_startup(now)
            await asyncio.sleep(self._until_next(now))

    async def _prepare(self) -> None:
        """Read the schedules of all tasks, once."""
        slices = TimeSlices()
        while self._unread:
            task = self._unread.pop()
            for series in CronSeries.of(task):
                self._series.append(series)
                if series.run_at_startup:  # a fixed job id, so that a repeated enqueue adds no second job
                    self._at_startup[series.job_id or new_job_id()] = task
            await slices.rest()

    async def _look(self, now: datetime) -> None:
        """Queue the cron slots that have passed at `now`."""
        if self._seen is None:
            found = await self._missed(now)
        else:
            # Taken series stay in `_due` until their slots are queued: Redis may be away, and then this runs again.
            self._due += await self._timetable.take(now)
            found = await self._passed(self._seen, now)
        await self._queue_slots(await self._without_paused(found.slots))
        await self._timetable.add(found.upcoming)
        self._due.clear()
        self._seen = now

    async def _missed(self, now: datetime) -> _Found:
        """The cron slots that passed before this worker ran, by each task's misfire policy."""
        last = await self._last_slots(self._series)
        found, slices = _Found(), TimeSlices()
        for series in self._series:
            moment = last.get(series.name)
            if moment is not None:
                found.add_by_misfire(series, series.next_after(min(moment, now)), now)
            else:
                # With no record, this is the first worker of this task: cron slots count from now on.
                found.slots += [(series, now, False)] if series.is_shared else []
                found.upcoming.append((series, series.next_after(now)))
            await slices.rest()
        return found

    async def _passed(self, seen: datetime, now: datetime) -> _Found:
        """The cron slots that passed since the last round.

        If that was long ago, without those that other workers have queued: the record of the last slot is read, because
        the ledger row of a queued slot may have been pruned.
        """
        is_late = now - seen > _LATE
        last = await self._last_slots([series for series, _ in self._due]) if is_late else {}
        found, slices = _Found(), TimeSlices()
        for series, first in self._due:
            recorded = last.get(series.name)
            is_queued = recorded is not None and recorded >= first
            found.add(series, series.next_after(min(recorded, now)) if recorded and is_queued else first, now)
            await slices.rest()
        if is_late and found.slots:
            late = (now - seen).total_seconds()
            logger.warning(
                "%s queued late: the last round was %.0f s ago",
                plural(len(found.slots), "cron slot is", "cron slots are"),
                late,
            )
        return found

    async def _last_slots(self, series: Iterable[CronSeries]) -> dict[str, datetime]:
        """The last recorded slots of those of the series that are shared, by the names of the series."""
        by_queue: dict[str, list[CronSeries]] = {}
        for each in series:
            if each.is_shared:
                by_queue.setdefault(self._queue_of(each.task), []).append(each)
        last: dict[str, datetime] = {}
        for queue, shared in by_queue.items():
            last |= await self._slots.last(shared, queue)
        return last

    async def _without_paused(self, passed: list[_Passed]) -> list[_Passed]:
        """The cron slots, those of paused schedules as only recorded."""
        if self._pauses is None or not any(runs for *_, runs in passed):
            return passed
        paused = await self._pauses.read(PauseKind.SCHEDULE)
        names = {series.task.name for series, _, runs in passed if runs}
        for name in sorted(names & paused.keys()):
            logger.info("task %s: its schedule is paused by %s: skipped its cron slots", name, paused[name].actor)
        return [(series, moment, runs and series.task.name not in paused) for series, moment, runs in passed]

    async def _run_at_startup(self, now: datetime) -> None:
        while self._at_startup:
            chunk = [*islice(self._at_startup.items(), _CHUNK)]
            jobs = [self._new_job(job_id, task, to_ms(now)) for job_id, task in chunk]
            for job, is_new in zip(jobs, await self._broker.enqueue(jobs), strict=True):
                if is_new:
                    count_enqueued([job])
            for job_id, _ in chunk:
                del self._at_startup[job_id]

    def _new_job(self, job_id: str, task: Task[..., Any], now: int) -> NewJob:
        return NewJob(job_id, encode(task.name, b"{}", now), task.name, self._queue_of(task), now, expires=A_DAY)

    async def _queue_slots(self, slots: Sequence[_Passed]) -> None:
        for begin in range(0, len(slots), _CHUNK):
            await self._queue_chunk(slots[begin : begin + _CHUNK])

    async def _queue_chunk(self, slots: Sequence[_Passed]) -> None:
        by_queue: dict[str, list[CronSlot]] = {}
        own: list[NewJob] = []
        for series, moment, runs in slots:
            if series.is_shared:
                by_queue.setdefault(self._queue_of(series.task), []).append(series.slot(moment, runs=runs))
            else:
                at = to_ms(moment)
                job_id = f"{slot_id(series.task.name, at)}:{self._id}"
                own.append(self._new_job(job_id, series.task, at)._replace(due=at))
        for name, found in by_queue.items():
            await self._slots.put(name, found)
        await self._broker.enqueue(own)

    def _until_next(self, now: datetime) -> float:
        first = self._timetable.first
        assert first is not None  # noqa: S101 - each series has a next slot
        return min(max((first - now).total_seconds(), 0.0), _LONGEST_SLEEP)

    def _queue_of(self, task: Task[..., Any]) -> str:
        return task.options.queue or self._default_queue


def _format(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"

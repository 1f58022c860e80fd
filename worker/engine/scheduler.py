"""``Scheduler``: queue each cron slot once, by the first worker that reaches it.

1. Cron slots are computed in UTC and compared with the clock of Redis, as the clocks of workers may differ.
2. While a scheduler runs, it queues every cron slot that passes. It queues late if the event loop was blocked or Redis
   was away.
3. The task's misfire policy decides about cron slots that passed while no worker ran: :mod:`worker.engine.cron_slots`.
4. Skipped cron slots are logged.
5. A task has one series of slots, or several: :mod:`worker.engine.cron_series`. The slots of a series that is not
   shared are queued by each worker from its start on.
6. Cron slots of a paused schedule are recorded as passed, and skipped. The pauses are read only when a slot has passed.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from worker.broker.broker import Broker
from worker.broker.records import CronSlot, to_ms
from worker.client.enqueued import count_enqueued
from worker.engine.cron_series import CronSeries
from worker.engine.cron_slots import LedgerSlotHistory, SlotHistory
from worker.ledger import Ledger
from worker.ledger.pauses import PauseKind, Pauses
from worker.message import encode
from worker.new_job import A_DAY, NewJob, slot_id
from worker.task import Task

logger = logging.getLogger("worker")

_Passed = tuple[CronSeries, datetime, bool]
"""A cron slot of a series, and whether it is to run. Otherwise it is only recorded."""

_LONGEST_SLEEP = 10.0  # seconds; then the clock of Redis is read again
_LATE = timedelta(minutes=1)  # since the last round; then the slots that other workers have queued are read first
_MOST_SLOTS = 1000  # of one task that are queued in a round: the latest
_TOO_MANY = f"only the latest {_MOST_SLOTS} are queued"


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
        self._series = [series for task in tasks.values() for series in CronSeries.of(task)]
        self._pauses = None if ledger is None else Pauses(ledger.name)
        self._default_queue = default_queue
        self._seen: datetime | None = None
        # Each series has a fixed job id, so that a repeated enqueue adds no second job.
        self._at_startup = {each.job_id or uuid4().hex: each.task for each in self._series if each.run_at_startup}
        self._id = uuid4().hex  # part of the ids of jobs that each worker queues for itself

    @property
    def has_begun(self) -> bool:
        """Whether the jobs that are due at its start are queued, if there are any."""
        return not self._series or (self._seen is not None and not self._at_startup)

    async def run(self) -> None:
        """Queue cron slots as they pass, for ever."""
        while self._series:
            now = await self._slots.now(self._default_queue)
            await self._queue_slots(await self._without_paused(await self._passed(now)))
            self._seen = now
            await self._run_at_startup(now)
            await asyncio.sleep(self._until_next(now))

    async def _passed(self, now: datetime) -> list[_Passed]:
        if self._seen is None:
            return await self._missed(now)
        if now - self._seen > _LATE:
            return await self._overdue(self._seen, now)
        return [slot for series in self._series for slot in _to_run(series, self._seen, now)]

    async def _without_paused(self, passed: list[_Passed]) -> list[_Passed]:
        """The cron slots, those of paused schedules as only recorded."""
        if self._pauses is None or not any(runs for *_, runs in passed):
            return passed
        paused = await self._pauses.read(PauseKind.SCHEDULE)
        names = {series.task.name for series, _, runs in passed if runs}
        for name in sorted(names & paused.keys()):
            logger.info("task %s: its schedule is paused by %s: skipped its cron slots", name, paused[name].actor)
        return [(series, moment, runs and series.task.name not in paused) for series, moment, runs in passed]

    async def _missed(self, now: datetime) -> list[_Passed]:
        """The cron slots that passed before this worker ran, by each task's misfire policy."""
        missed: list[_Passed] = []
        for series in self._shared:
            last = await self._slots.last(series, self._queue_of(series.task))
            # With no record, this is the first worker of this task: cron slots count from now on.
            missed += [(series, now, False)] if last is None else _by_misfire(series, last, now)
        return missed

    async def _overdue(self, seen: datetime, now: datetime) -> list[_Passed]:
        """The cron slots that passed since a last round of long ago, without those that other workers have queued.

        The record of the last slot is read, because the ledger row of a queued slot may have been pruned.
        """
        overdue: list[_Passed] = []
        for series in self._series:
            last = await self._slots.last(series, self._queue_of(series.task)) if series.is_shared else None
            overdue += _to_run(series, seen if last is None else max(seen, last), now)
        if overdue:
            late = (now - seen).total_seconds()
            logger.warning("%d cron slots are queued late: the last round was %.0f s ago", len(overdue), late)
        return overdue

    async def _run_at_startup(self, now: datetime) -> None:
        if self._at_startup:
            jobs = [self._new_job(job_id, task, to_ms(now)) for job_id, task in self._at_startup.items()]
            for job, is_new in zip(jobs, await self._broker.enqueue(jobs), strict=True):
                if is_new:
                    count_enqueued([job])
            self._at_startup.clear()

    def _new_job(self, job_id: str, task: Task[..., Any], now: int) -> NewJob:
        return NewJob(job_id, encode(task.name, b"{}", now), task.name, self._queue_of(task), now, expires=A_DAY)

    async def _queue_slots(self, slots: Iterable[_Passed]) -> None:
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
        next_slot = min(series.next_after(now) for series in self._series)
        return min(max((next_slot - now).total_seconds(), 0.0), _LONGEST_SLEEP)

    @property
    def _shared(self) -> Iterable[CronSeries]:
        return (series for series in self._series if series.is_shared)

    def _queue_of(self, task: Task[..., Any]) -> str:
        return task.options.queue or self._default_queue


def _by_misfire(series: CronSeries, last: datetime, now: datetime) -> list[_Passed]:
    """The cron slots after `last` that the misfire policy lets run."""
    # Skipped slots are not recorded: another worker may be about to queue the slot of this moment.
    most = {"skip": 0, "once": 1, "all": _MOST_SLOTS}[series.misfire]
    return _to_run(series, last, now, most, why=f"no worker ran, and misfire is {series.misfire!r}")


def _to_run(
    series: CronSeries, start: datetime, end: datetime, most: int = _MOST_SLOTS, *, why: str = _TOO_MANY
) -> list[_Passed]:
    """The latest cron slots after `start`, at most `most`. Earlier slots are skipped, and logged with the reason."""
    slots = series.slots_between(start, end, limit=most) if most else ()
    first, until = series.next_after(start), slots[0] if slots else end
    if first <= end and first not in slots:
        logger.warning(
            "task %s: skipped its cron slots from %s until %s: %s",
            series.task.name,
            _format(first),
            _format(until),
            why,
        )
    return [(series, moment, True) for moment in slots]


def _format(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"

"""``ScheduleAdmin``: list scheduled tasks with their cron slots, run one now, pause and resume one."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from worker.admin.audit import Recorder
from worker.admin.deployment import Deployment
from worker.admin.queues import Pause, end_of_pause
from worker.broker.cron_slots import CronSlots
from worker.broker.records import CronSlot, to_ms
from worker.client.schedule import Schedule
from worker.context import from_milliseconds
from worker.errors import LedgerError
from worker.job import Job
from worker.job_ids import new_job_id
from worker.ledger.admin import JobAdmin
from worker.ledger.audit import AuditRow
from worker.ledger.pauses import PauseKind, PauseRow, Pauses
from worker.message import encode
from worker.new_job import A_DAY, NewJob, slot_id
from worker.task import Task


@dataclass(frozen=True, slots=True)
class CronSlotRun:
    """A cron slot that has passed, and how its job went."""

    at: datetime
    job_id: str
    state: str
    """The state of its job row: pending, done, failed, aborted, discarded or expired. Without a ledger: unknown."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """A scheduled task."""

    task: str
    queue: str
    expression: str
    timezone: str
    description: str
    """The schedule in words."""
    next_slots: tuple[datetime, ...]
    """The next slots, by this machine's clock. They are skipped while the schedule is paused."""
    last_slots: tuple[CronSlotRun, ...]
    """The last slots that were queued, the latest first."""
    pause: Pause | None = None


class ScheduleAdmin:
    """The scheduled tasks of a registry.

    Args:
        tasks: the tasks by name, as `worker.registry.load` returns them. Tasks without a schedule are left out.
        deployment: where their jobs are (default: the servers of this process).
    """

    def __init__(self, tasks: Mapping[str, Task[..., Any]], deployment: Deployment | None = None) -> None:
        self._tasks = {name: task for name, task in tasks.items() if task.schedule is not None}
        self._deployment = deployment or Deployment.of_process()
        ledger = self._deployment.ledger
        self._slots = CronSlots(self._deployment.broker.connections)
        self._pauses = None if ledger is None else Pauses(ledger.name)
        self._jobs = None if ledger is None else JobAdmin(ledger.name)
        self._recorder = Recorder(self._deployment)

    async def list(self, *, upcoming: int = 3, past: int = 5) -> list[ScheduleInfo]:
        """All scheduled tasks, with this many next and last slots each."""
        rows = {} if self._pauses is None else await self._pauses.read(PauseKind.SCHEDULE)
        pauses = {name: _pause_of(row) for name, row in rows.items()}
        last = await asyncio.gather(*(self._last_slots(task, past) for task in self._tasks.values()))
        return [
            _info(task, self._queue_of(task), upcoming, slots, pauses.get(task.name))
            for task, slots in zip(self._tasks.values(), last, strict=True)
        ]

    async def run_now(self, task: str, *, actor: str) -> Job[Any]:
        """Enqueue a job of a scheduled task, besides its slots. Allowed while the schedule is paused.

        Raises:
            KeyError: there is no such scheduled task.
        """
        broker, ledger = self._deployment.broker, self._deployment.ledger
        queue, now, job_id = self._queue_of(self._tasks[task]), to_ms(datetime.now(UTC)), new_job_id()
        row = AuditRow(actor, "schedule.run_now", task, {"job": job_id}, "done")
        payload = encode(task, b"{}", now, in_ledger=ledger is not None)
        job = NewJob(job_id, payload, task, queue, now, expires=None if ledger is not None else A_DAY)
        if ledger is None:
            async with self._recorder.around(row._replace(outcome=None)):
                await broker.enqueue([job])
        else:
            await self._recorder.commit(row, lambda session: ledger.add(session, [job]))
            await broker.publish([job])
        return Job(job_id, queue_name=queue, broker=broker, enqueued_at=from_milliseconds(now), is_new=True)

    async def pause(self, task: str, *, actor: str, until: datetime | None = None) -> Pause:
        """Queue no more slots of a task. Slots that pass meanwhile are skipped, whatever its misfire policy is.

        Raises:
            KeyError: there is no such scheduled task.
            ValueError: `until` has no time zone, or is not in the future.
            LedgerError: this process has no ledger, which keeps the pause.
        """
        pauses, now = self._require_pauses(), to_ms(await self._slots.now(self._queue_of(self._tasks[task])))
        row = PauseRow(PauseKind.SCHEDULE, task, now, actor, end_of_pause(until, now))
        audit = AuditRow(actor, "schedule.pause", task, {"until": until}, "done")
        await self._recorder.commit(audit, lambda session: pauses.write(session, row))
        return _pause_of(row)

    async def resume(self, task: str, *, actor: str) -> bool:
        """Queue slots again, from the next one on. False if the schedule was not paused.

        Raises:
            KeyError: there is no such scheduled task.
            LedgerError: as `pause`.
        """
        pauses, queue = self._require_pauses(), self._queue_of(self._tasks[task])
        # Recorded as passed, so that no worker that starts later makes up for the slots of the pause.
        now = to_ms(await self._slots.now(queue))
        audit = AuditRow(actor, "schedule.resume", task, {}, "done")
        if task in await pauses.read(PauseKind.SCHEDULE, [task]):
            await self._slots.add(queue, _passed(self._tasks[task], now))
        return await self._recorder.commit(audit, lambda session: pauses.end(session, PauseKind.SCHEDULE, task))

    async def _last_slots(self, task: Task[..., Any], past: int) -> tuple[CronSlotRun, ...]:
        if self._jobs is None:
            last = (await self._slots.last(self._queue_of(task))).get(task.name)
            return () if last is None else (CronSlotRun(last, slot_id(task.name, to_ms(last)), "unknown"),)
        return tuple(
            CronSlotRun(
                at=from_milliseconds(row["enqueued_at"]),
                job_id=row["id"],
                state=row["state"],
                started_at=None if row["started_at"] is None else from_milliseconds(row["started_at"]),
                finished_at=None if row["finished_at"] is None else from_milliseconds(row["finished_at"]),
                error=row["error"],
            )
            for row in await self._jobs.latest_slots(task.name, past)
        )

    def _require_pauses(self) -> Pauses:
        if self._pauses is None:
            raise LedgerError("a paused schedule is a row in the ledger's database: set DATABASE_URL")
        return self._pauses

    def _queue_of(self, task: Task[..., Any]) -> str:
        return task.options.queue or self._deployment.broker.name


def _passed(task: Task[..., Any], now: int) -> list[CronSlot]:
    """Records that the slots until now have passed: one for each series of slots that the workers share."""
    shared = (schedule for schedule in task.schedules if schedule.unique or schedule.job_id is not None)
    return [
        CronSlot(task.name, now, job_id or slot_id(task.name, now), b"", int(job_id is not None))
        for job_id in dict.fromkeys(schedule.job_id for schedule in shared)
    ]


def _info(
    task: Task[..., Any], queue: str, upcoming: int, last_slots: tuple[CronSlotRun, ...], pause: Pause | None
) -> ScheduleInfo:
    schedules = task.schedules
    slots = {slot for schedule in schedules for slot in _next_slots(schedule, upcoming)}
    return ScheduleInfo(
        task=task.name,
        queue=queue,
        expression="; ".join(schedule.expression for schedule in schedules),
        timezone=", ".join(dict.fromkeys(schedule.timezone for schedule in schedules)),
        description="; ".join(schedule.describe() for schedule in schedules),
        next_slots=tuple(sorted(slots)[:upcoming]),
        last_slots=last_slots,
        pause=pause,
    )


def _pause_of(row: PauseRow) -> Pause:
    until = None if row.until is None else from_milliseconds(row.until)
    return Pause(from_milliseconds(row.since), row.actor, until)


def _next_slots(schedule: Schedule, count: int) -> list[datetime]:
    slots: list[datetime] = []
    for _ in range(count):
        slots.append(schedule.next_after(slots[-1] if slots else datetime.now(UTC)))
    return slots

"""``QueueAdmin``: list queues, and pause, resume, drain and purge them for the whole fleet."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from sqlalchemy.exc import SQLAlchemyError

from db.errors import DbError
from db.text.plural import plural
from worker.admin.audit import Recorder
from worker.admin.deployment import Deployment
from worker.broker.pauses import QueuePause
from worker.broker.queue_state import QueueInspector
from worker.broker.records import to_ms
from worker.context import from_milliseconds
from worker.control.queue_pauses import QueuePauses
from worker.errors import LedgerError
from worker.ledger.admin import JobAdmin
from worker.ledger.audit import AuditRow
from worker.ledger.pauses import PauseKind, PauseRow, Pauses
from worker.metrics.reader import MetricsReader

_BATCH = 500  # jobs that are removed in one transaction
_COUNTED = 5000  # jobs that one round trip counts


class QueueState(StrEnum):
    """The state of a queue."""

    ACTIVE = "active"
    PAUSED = "paused"
    """No job of the queue starts."""
    DRAINING = "draining"
    """Jobs that were due when the queue was drained still start; others wait. Then the queue is paused."""


class TimeOverError(ValueError):
    """The time at which a pause should end is over."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of a queue or a schedule."""

    since: datetime
    actor: str
    until: datetime | None = None
    """The end of the pause. None: until a person resumes it."""
    drains: bool = False
    """Whether jobs that were due at `since` still start."""
    is_durable: bool = True
    """Whether the pause is in the database, and so survives a Redis that loses everything."""


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """A queue at this moment."""

    name: str
    depth: int
    """Jobs that wait or run."""
    due: int
    """Jobs that could start now."""
    later: int
    """Jobs that run, or are due in the future."""
    oldest_due: float | None
    """Seconds for which the first job has been due. None if no job is due."""
    workers: int
    """Healthy workers."""
    tasks: frozenset[str]
    """The tasks that live workers of the queue know."""
    state: QueueState = QueueState.ACTIVE
    pause: Pause | None = None


@dataclass(frozen=True, slots=True)
class PurgeProgress:
    """How far a purge has come."""

    total: int
    """Jobs that waited in Redis when the purge began. Jobs that are only in the ledger are removed besides."""
    removed: int
    is_over: bool = False


class QueueAdmin:
    """The queues of a deployment.

    Args:
        deployment: where the queues are (default: the servers of this process).
    """

    def __init__(self, deployment: Deployment | None = None) -> None:
        self._deployment = deployment or Deployment.of_process()
        broker, ledger = self._deployment.broker, self._deployment.ledger
        self._inspector = QueueInspector(broker.connections)
        self._metrics = MetricsReader(broker)
        self._pauses = QueuePauses(broker, ledger)
        self._rows = None if ledger is None else Pauses(ledger.name)
        self._jobs = None if ledger is None else JobAdmin(ledger.name)
        self._recorder = Recorder(self._deployment)

    async def list(self) -> list[QueueInfo]:
        """All queues of the deployment, and those that are paused.

        A queue that nothing names is listed while a worker serves it, or a job is in it.
        """
        named = [*self._deployment.named]
        if self._rows is not None:
            with contextlib.suppress(SQLAlchemyError, DbError, LedgerError, OSError):  # the others are listed anyway
                named += sorted(await self._rows.read(PauseKind.QUEUE))
        found = await asyncio.gather(*map(self.get, dict.fromkeys([*named, *self._deployment.queues])))
        return [queue for queue in found if queue.name in named or queue.depth or queue.workers or queue.pause]

    async def get(self, name: str) -> QueueInfo:
        """One queue. An empty one if it does not exist."""
        snapshot, workers = await asyncio.gather(self._inspector.snapshot(name), self._metrics.healthy_workers([name]))
        state = QueueState.ACTIVE
        if snapshot.pause is not None:
            drains = snapshot.pause.due_before is not None
            state = QueueState.DRAINING if drains and snapshot.startable else QueueState.PAUSED
        return QueueInfo(
            name=name,
            depth=snapshot.depth,
            due=snapshot.due,
            later=snapshot.depth - snapshot.due,
            oldest_due=snapshot.oldest_due,
            workers=len(workers),
            tasks=snapshot.tasks,
            state=state,
            pause=None if snapshot.pause is None else self._pause_of(snapshot.pause),
        )

    async def pause(self, name: str, *, actor: str, until: datetime | None = None) -> Pause:
        """Start no more jobs of a queue, on any worker, from the next claim on. Enqueueing and running jobs go on.

        Args:
            until: the time at which the queue goes on by itself (default: never).

        Raises:
            ValueError: `until` has no time zone, or is not in the future.
        """
        return await self._set(name, "queue.pause", actor, until, drains=False)

    async def drain(self, name: str, *, actor: str, until: datetime | None = None) -> Pause:
        """Start the jobs that are due now, and no later ones: pause the queue once it has worked off what is there.

        Raises:
            ValueError: as `pause`.
        """
        return await self._set(name, "queue.drain", actor, until, drains=True)

    async def resume(self, name: str, *, actor: str) -> bool:
        """End the pause of a queue. False if it was not paused."""
        row = AuditRow(actor, "queue.resume", name, {})
        if self._rows is None:
            async with self._recorder.around(row):
                was_paused = name in await self._pauses.copies([name])
                await self._pauses.set_copy(name, None)
            return was_paused
        rows = self._rows
        was_paused = await self._recorder.commit(
            row._replace(outcome="done"), lambda session: rows.end(session, PauseKind.QUEUE, name)
        )
        copy = (await self._pauses.copies([name])).get(name)
        if copy is not None and not copy.is_durable:  # a process without a ledger has paused it
            await self._pauses.set_copy(name, None)
            was_paused = True
        await self._pauses.restore([name])
        return was_paused

    async def waiting(self, name: str) -> int:
        """The number of jobs in Redis that `purge` would remove now."""
        counted = first = 0
        while True:
            read, number = await self._inspector.count_waiting(name, first, _COUNTED)
            counted, first = counted + number, first + read
            if read < _COUNTED:
                return counted

    async def purge(self, name: str, *, actor: str) -> AsyncIterator[PurgeProgress]:
        """Remove the jobs of a queue that wait, in batches. Their job rows become discarded. Running jobs go on.

        Jobs that are enqueued after the purge has begun, by the clocks of their producers, stay. The purge ends early
        if the iteration does.
        """
        total, removed = await self.waiting(name), 0
        async with self._recorder.around(AuditRow(actor, "queue.purge", name, {"waiting": total})) as outcome:
            outcome.text = "stopped after 0 jobs"
            before = await self._inspector.now(name)
            yield PurgeProgress(total, 0)
            async for number in self._remove_all(name, before):
                removed += number
                outcome.text = "stopped after " + plural(removed, "job")
                yield PurgeProgress(total, removed)
            outcome.text = "removed " + plural(removed, "job")
        yield PurgeProgress(total, removed, is_over=True)

    async def _set(self, name: str, action: str, actor: str, until: datetime | None, *, drains: bool) -> Pause:
        now = await self._inspector.now(name)
        end = end_of_pause(until, now)
        pause = QueuePause(now, actor, end, now if drains else None, is_durable=self._rows is not None)
        row = AuditRow(actor, action, name, {"until": until})
        if self._rows is None:
            async with self._recorder.around(row):
                await self._pauses.set_copy(name, pause)
        else:
            rows, pause_row = self._rows, PauseRow(PauseKind.QUEUE, name, now, actor, end, pause.due_before)
            await self._recorder.commit(row._replace(outcome="done"), lambda session: rows.write(session, pause_row))
            await self._pauses.restore([name])
        return self._pause_of(pause)

    async def _remove_all(self, name: str, before: int) -> AsyncIterator[int]:
        """Remove jobs that were enqueued before a time, in batches. Yield how many were removed."""
        kept = 0
        while True:
            read, ids = await self._inspector.waiting(name, kept, _BATCH, before)
            removed = await self._remove(name, ids)
            kept += read - removed
            if ids:
                yield removed
            if read < _BATCH:
                break
        if self._jobs is None or self._deployment.ledger is None:
            return
        last = ""  # rows of jobs that are not in Redis: the relay would publish them
        while rows := await self._deployment.ledger.pending_after(last, [name], _BATCH):
            last = rows[-1][0]
            if old := [job_id for job_id, enqueued_at, _ in rows if enqueued_at <= before]:
                yield await self._discard_unpublished(name, old)

    async def _remove(self, name: str, raw_ids: Sequence[bytes]) -> int:
        if not raw_ids:
            return 0
        if self._jobs is None:
            return len(await self._inspector.remove(name, raw_ids))

        removed: list[str] = []

        async def remove() -> list[str]:
            removed.extend(map(_as_text, await self._inspector.remove(name, raw_ids)))
            return removed

        await self._jobs.discard_pending([*map(_as_text, raw_ids)], remove)
        return len(removed)

    async def _discard_unpublished(self, name: str, ids: Sequence[str]) -> int:
        assert self._jobs is not None  # noqa: S101 - the caller has a ledger

        async def not_in_redis() -> list[str]:
            is_there = await self._deployment.broker.exists(name, ids)
            return [job_id for job_id, is_in_redis in zip(ids, is_there, strict=True) if not is_in_redis]

        return await self._jobs.discard_pending(ids, not_in_redis)

    def _pause_of(self, pause: QueuePause) -> Pause:
        return Pause(
            since=from_milliseconds(pause.since),
            actor=pause.actor,
            until=None if pause.until is None else from_milliseconds(pause.until),
            drains=pause.due_before is not None,
            is_durable=pause.is_durable,
        )


def _as_text(raw_id: bytes) -> str:
    return raw_id.decode(errors="backslashreplace")


def end_of_pause(until: datetime | None, now: int) -> int | None:
    """The end of a pause in milliseconds since the epoch.

    Raises:
        TimeOverError: `until` is not later than `now`.
        ValueError: `until` has no time zone, or cannot be told in UTC.
    """
    if until is None:
        return None
    if until.tzinfo is None:
        raise ValueError(f"until={until!r} has no time zone: use datetime.now(UTC) + timedelta(hours=1)")
    try:
        end = to_ms(until.astimezone(UTC))
    except OverflowError:
        raise ValueError(f"until={until!r} cannot be told in UTC: leave it out for a pause without an end") from None
    if end <= now:
        raise TimeOverError(f"until={until:%Y-%m-%d %H:%M:%S %Z} is not in the future")
    return end

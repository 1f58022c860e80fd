"""``JobAdmin``: finding, showing, retrying and discarding job rows, for administrators.

1. An action gets a list of keys that was read before. Jobs that have failed since are not in it.
2. The keys are handled in batches, each in a short transaction. A row that has changed meanwhile, or whose id is
   pending again, is left as it is and reported. The other rows are handled.
3. A retried row keeps its id, its enqueue time and its history. It is pending, so the relay publishes it even if the
   caller does not.
"""

import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    LargeBinary,
    Select,
    Text,
    and_,
    bindparam,
    func,
    null,
    select,
    update,
)
from sqlalchemy.exc import IntegrityError

from db import default_database
from db.scope import scope
from db.text.plural import plural
from worker.errors import PayloadError
from worker.ledger.audit import Audit, AuditRow
from worker.ledger.error_kind import beginning, kind_of, without_numbers
from worker.ledger.execute import AnySession, execute
from worker.ledger.ledger import Ledger
from worker.ledger.table import NAME, State, now_ms, table
from worker.message import with_row
from worker.new_job import NewJob, slot_id

BATCH = 500
"""The most rows that one transaction changes."""
_HISTORY = 20  # earlier failures that a row keeps
_TRIES = 5  # for a batch, while other processes enqueue the same ids


class Key(NamedTuple):
    """The primary key of a row."""

    id: str
    enqueued_at: int


@dataclass(frozen=True, slots=True)
class JobFilter:
    """A filter for rows. All conditions must hold."""

    state: State = State.FAILED
    task: str | None = None
    queue: str | None = None
    error: str | None = None
    """A part of the error's line, in any case."""


class JobRow(NamedTuple):
    """A row in a list of jobs. Times are milliseconds since the epoch."""

    id: str
    enqueued_at: int
    task: str
    queue: str
    tries: int
    due: int | None
    finished_at: int | None
    error: str | None


class FailureCount(NamedTuple):
    """The number of rows of one task with one kind of error."""

    jobs: int
    task: str
    error: str | None
    """The error if all rows have the same one, else its kind by `kind_of`."""


class Rejection(NamedTuple):
    """A row that was left as it is."""

    id: str
    why: str


class JobAdmin:
    """The job rows of the default database.

    Args:
        name: the name of the table, with its schema if it has one (default: ``tandem_jobs``).
    """

    def __init__(self, name: str = NAME) -> None:
        self._jobs = table(name)
        self._ledger = Ledger(name)
        self._audit = Audit(name)

    async def lines(self, job_filter: JobFilter, limit: int) -> list[JobRow]:
        """The rows that became final last. Of pending rows those that were enqueued last."""
        job = self._jobs.c
        latest = job.enqueued_at if job_filter.state is State.PENDING else job.finished_at
        statement = select(*(job[field] for field in JobRow._fields)).where(self._matches(job_filter))
        return [JobRow(*row) for row in await self._read(statement.order_by(latest.desc()).limit(limit))]

    async def tallies(self, job_filter: JobFilter) -> list[FailureCount]:
        """The number of rows by task and kind of error, the largest first."""
        job = self._jobs.c
        error = beginning(job.error)
        statement = select(func.count(), job.task, func.min(error), func.max(error)).where(self._matches(job_filter))
        rows = await self._read(statement.group_by(job.task, without_numbers(job.error)))
        return _by_kind(rows)

    async def keys(self, job_filter: JobFilter) -> list[Key]:
        """The keys of the rows, in the order in which they became final."""
        job = self._jobs.c
        statement = select(job.id, job.enqueued_at).where(self._matches(job_filter))
        return [Key(*row) for row in await self._read(statement.order_by(job.finished_at))]

    async def batches(self, keys: Sequence[Key]) -> AsyncIterator[Sequence[Key]]:
        """Split keys into batches that one transaction may change: up to `BATCH` rows, and fewer if they are large."""
        for first in range(0, len(keys), BATCH):
            for batch in await self._ledger.in_batches(keys[first : first + BATCH], BATCH):
                yield batch

    async def latest(self, job_id: str) -> tuple[Key, State] | None:
        """The key and state of the last enqueued row of an id, or None."""
        rows = await self.all_of(job_id)
        return (Key(job_id, rows[0]["enqueued_at"]), State(rows[0]["state"])) if rows else None

    async def all_of(self, job_id: str) -> list[Mapping[str, Any]]:
        """The rows of an id as dicts by column, the last enqueued one first."""
        job = self._jobs.c
        statement = select(self._jobs).where(job.id == job_id).order_by(job.enqueued_at.desc())
        fields = self._jobs.c.keys()
        return [dict(zip(fields, row, strict=True)) for row in await self._read(statement)]

    async def latest_slots(self, task: str, limit: int) -> list[Mapping[str, Any]]:
        """The rows of the last cron slots of a task, the latest first, as dicts by column without the payload."""
        job, prefix = self._jobs.c, slot_id(task, "")
        columns = (job.id, job.enqueued_at, job.queue, job.state, job.started_at, job.finished_at, job.error)
        of_slots = (job.id >= f"{prefix}0", job.id < f"{prefix}:", job.task == task)  # : is the character after 9
        statement = select(*columns).where(*of_slots).order_by(job.id.desc()).limit(limit)
        names = [column.name for column in columns]
        return [dict(zip(names, row, strict=True)) for row in await self._read(statement)]

    async def retry(
        self, keys: Sequence[Key], *, accept_pickle: bool = False, audit: AuditRow | None = None
    ) -> tuple[list[NewJob], list[Rejection]]:
        """Set a batch of failed jobs pending again. The caller publishes them once this has returned.

        Args:
            keys: one of `batches`.
            accept_pickle: whether jobs that an arq producer has pickled may be read. Retrying reads the payload.
            audit: the audit row that is committed with the change, if any row is changed (default: none).

        Returns:
            The jobs to publish, and the rows that were left as they are.
        """
        for tries_left in reversed(range(_TRIES)):
            try:
                return await self._retry(keys, accept_pickle=accept_pickle, audit=audit)
            except IntegrityError:  # one of the ids was enqueued again meanwhile; the next try sees it
                if not tries_left:
                    raise
        raise AssertionError("unreachable")

    async def discard(self, keys: Sequence[Key], *, audit: AuditRow | None = None) -> list[Rejection]:
        """Discard a batch of failed jobs. They are pruned as other final rows are.

        Args:
            keys: one of `batches`.
            audit: as in `retry`.
        """
        async with scope() as work:
            session = await work.session(default_database())
            failed = await self._failed(session, keys)
            if failed:
                await execute(session, self._discard, [{"of_id": key.id, "of_time": key.enqueued_at} for key in failed])
                await self._write_audit(session, audit, "discarded", [key.id for key in failed])
        return _rejected(keys, failed)

    async def discard_pending(self, ids: Sequence[str], remove: Callable[[], Awaitable[Collection[str]]]) -> int:
        """Discard the pending rows of jobs that are removed from their queue. Return how many there were.

        Args:
            ids: the ids of the jobs, up to `BATCH`.
            remove: removes the jobs, and returns the ids of those that it has removed. Meanwhile their rows are locked,
                so that no relay publishes them again. Rows that another transaction holds stay pending.
        """
        job = self._jobs.c
        pending = (
            select(job.id, job.enqueued_at)
            .where(job.state == State.PENDING.value, job.id.in_(ids))
            .order_by(job.id)
            .with_for_update(skip_locked=True)
        )
        async with scope() as work:
            session = await work.session(default_database())
            locked = [Key(*row) for row in (await execute(session, pending)).all()]
            removed = set(await remove())
            keys = [{"of_id": key.id, "of_time": key.enqueued_at} for key in locked if key.id in removed]
            if keys:
                await execute(session, self._discard, keys)
        return len(keys)

    async def _write_audit(self, session: AnySession, row: AuditRow | None, verb: str, ids: Sequence[str]) -> None:
        if row is not None:
            detail = {**row.detail, "jobs": len(ids), "ids": ids}
            await self._audit.add(session, row._replace(detail=detail, outcome=f"{verb} {plural(len(ids), 'job')}"))

    async def _retry(
        self, keys: Sequence[Key], *, accept_pickle: bool, audit: AuditRow | None
    ) -> tuple[list[NewJob], list[Rejection]]:
        async with scope() as work:
            session = await work.session(default_database())
            failed = await self._failed(session, keys)
            pending_ids = set((await execute(session, self._pending([key.id for key in failed]))).scalars())
            rejections = _rejected(keys, failed)
            retried: list[NewJob] = []
            changes: list[dict[str, Any]] = []
            for row in failed.values():
                try:
                    payload = _payload(row, pending_ids, accept_pickle=accept_pickle)
                except PayloadError as error:
                    rejections.append(Rejection(row["id"], str(error)))
                    continue
                pending_ids.add(row["id"])
                retried.append(_due_now(row, payload))
                changes.append(
                    {
                        "of_id": row["id"],
                        "of_time": row["enqueued_at"],
                        "new_payload": payload,
                        "new_history": _longer_history(row),
                    }
                )
            if changes:
                await execute(session, self._set_pending, changes)
                await self._write_audit(session, audit, "retried", [job.id for job in retried])
        return retried, rejections

    def _matches(self, job_filter: JobFilter) -> ColumnElement[bool]:
        job = self._jobs.c
        # Not a parameter: the indexes are partial by state, and the planner must see the value to use them.
        conditions = [job.state == bindparam(None, job_filter.state.value, literal_execute=True)]
        if job_filter.task is not None:
            conditions.append(job.task == job_filter.task)
        if job_filter.queue is not None:
            conditions.append(job.queue == job_filter.queue)
        if job_filter.error is not None:
            conditions.append(job.error.icontains(job_filter.error, autoescape=True))
        return and_(*conditions)

    async def _failed(self, session: AnySession, keys: Sequence[Key]) -> dict[Key, Mapping[str, Any]]:
        """The rows that are failed, locked in a fixed order, so that two administrators cannot deadlock."""
        job = self._jobs.c
        # By ids alone, and filtered here: the planner may compare a long list of pairs with every failed row.
        statement = (
            select(self._jobs)
            .where(job.id.in_([key.id for key in keys]), job.state == State.FAILED.value)
            .order_by(job.id, job.enqueued_at.desc())
            .with_for_update()
        )
        rows = (await execute(session, statement)).mappings().all()
        wanted = set(keys)
        return {key: row for row in rows if (key := Key(row["id"], row["enqueued_at"])) in wanted}

    def _pending(self, ids: Sequence[str]) -> Select[Any]:
        job = self._jobs.c
        return select(job.id).where(job.state == State.PENDING.value, job.id.in_(ids))

    @property
    def _set_pending(self) -> Any:
        cleared = dict.fromkeys(("result", "error", "traceback", "started_at", "finished_at"), null())
        return (
            update(self._jobs)
            .where(self._has_key)
            .values(
                cleared
                | {
                    "state": State.PENDING.value,
                    "payload": bindparam("new_payload", type_=LargeBinary),
                    "history": bindparam("new_history", type_=Text),
                    "due": now_ms(),
                    "check_at": now_ms(),
                    "tries": 0,
                    "checks": 0,
                }
            )
        )

    @property
    def _discard(self) -> Any:
        return (
            update(self._jobs)
            .where(self._has_key)
            .values(state=State.DISCARDED.value, payload=null(), finished_at=now_ms(), check_at=null())
        )

    @property
    def _has_key(self) -> ColumnElement[bool]:
        job = self._jobs.c
        return and_(job.id == bindparam("of_id", type_=Text), job.enqueued_at == bindparam("of_time", type_=BigInteger))

    async def _read(self, statement: Select[Any]) -> Sequence[Any]:
        async with scope() as work:
            session = await work.session(default_database())
            rows: Sequence[Any] = (await execute(session, statement)).all()
        return rows


def _by_kind(rows: Sequence[Any]) -> list[FailureCount]:
    """Counts by kind, from rows of a count, a task, and the alphabetically first and last of the counted errors."""
    jobs: Counter[tuple[str, str | None]] = Counter()
    errors: defaultdict[tuple[str, str | None], set[str]] = defaultdict(set)
    for number, task, first, last in rows:
        kind = task, None if first is None else kind_of(first)
        jobs[kind] += number
        errors[kind] |= {first, last} - {None}
    counts = [
        FailureCount(number, task, *errors[task, kind])
        if len(errors[task, kind]) == 1
        else FailureCount(number, task, kind)
        for (task, kind), number in jobs.items()
    ]
    return sorted(counts, key=lambda count: (-count.jobs, count.task, count.error or ""))


def earlier_ends(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The failures of the job before it was retried, the earliest first: each with `error`, `tries`, `finished_at`."""
    ends: list[dict[str, Any]] = json.loads(row["history"] or "[]")
    return ends


def _longer_history(row: Mapping[str, Any]) -> str:
    end = {field: row[field] for field in ("error", "tries", "finished_at")}
    return json.dumps([*earlier_ends(row), end][-_HISTORY:])


def _payload(row: Mapping[str, Any], pending_ids: set[str], *, accept_pickle: bool) -> bytes:
    """The payload to publish the job with.

    Raises:
        PayloadError: the job cannot be published. The message says why.
    """
    if row["id"] in pending_ids:
        raise PayloadError("another job of this id is pending")
    if row["payload"] is None:
        raise PayloadError("its arguments are unknown: they had expired, or the job never had any")
    return with_row(row["payload"], accept_pickle=accept_pickle, enqueued_at=row["enqueued_at"])


def _due_now(row: Mapping[str, Any], payload: bytes) -> NewJob:
    """A retried row as a job to publish. It is due now, and may wait for as long as at first."""
    return NewJob(row["id"], payload, row["task"], row["queue"], row["enqueued_at"], expires=row["patience"])


def _rejected(keys: Sequence[Key], failed: Collection[Key]) -> list[Rejection]:
    return [Rejection(key.id, "its row has changed meanwhile") for key in keys if key not in failed]

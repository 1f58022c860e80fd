"""``JobAdmin``: job rows as people handle them: find, look at, retry, discard.

1. What is acted upon is a list of keys, which was counted before: nothing that has failed since is among it.
2. It goes in batches, each a short transaction. A row that has changed meanwhile, or that is in the way of a unique id,
   is left as it is and told of; the others go on.
3. A retried row keeps its id, its enqueue time and its history; it is pending, so that the relay publishes it even if
   nobody else does.
"""

import json
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
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
from worker.errors import PayloadError
from worker.ledger.error_kind import beginning, kind_of, without_numbers
from worker.ledger.execute import AnySession, execute
from worker.ledger.ledger import Ledger
from worker.ledger.table import NAME, State, now_ms, table
from worker.message import with_row
from worker.new_job import NewJob

BATCH = 500
"""Rows that one transaction changes."""
_HISTORY = 20  # earlier ends that a row keeps
_TRIES = 5  # of a batch that others enqueue the same ids against


class Key(NamedTuple):
    """What a row is known by."""

    id: str
    enqueued_at: int


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Rows for which all of this holds."""

    state: State = State.FAILED
    task: str | None = None
    queue: str | None = None
    error: str | None = None
    """A part of the error's line, whatever its case."""


class JobRow(NamedTuple):
    """A row in a list. Times are milliseconds since the epoch."""

    id: str
    enqueued_at: int
    task: str
    queue: str
    tries: int
    due: int | None
    finished_at: int | None
    error: str | None


class FailureCount(NamedTuple):
    """How many rows there are of one task that ended with one kind of error."""

    jobs: int
    task: str
    error: str | None
    """What all of them say; where they differ, what `kind_of` makes of it."""


class Rejection(NamedTuple):
    """A row that was left as it is."""

    id: str
    why: str


class JobAdmin:
    """The job rows of the default database.

    Args:
        name: of the table, with its schema if it has one (default: ``tandem_jobs``).
    """

    def __init__(self, name: str = NAME) -> None:
        self._jobs = table(name)
        self._ledger = Ledger(name)

    async def lines(self, which: JobFilter, limit: int) -> list[JobRow]:
        """The rows that ended last; of pending ones those that were enqueued last."""
        job = self._jobs.c
        latest = job.enqueued_at if which.state is State.PENDING else job.finished_at
        statement = select(*(job[field] for field in JobRow._fields)).where(self._are(which))
        return [JobRow(*row) for row in await self._read(statement.order_by(latest.desc()).limit(limit))]

    async def tallies(self, which: JobFilter) -> list[FailureCount]:
        """How many there are, by task and kind of error, the most first."""
        job = self._jobs.c
        said = beginning(job.error)
        statement = select(func.count(), job.task, func.min(said), func.max(said)).where(self._are(which))
        rows = await self._read(statement.group_by(job.task, without_numbers(job.error)))
        return _by_kind(rows)

    async def keys(self, which: JobFilter) -> list[Key]:
        """The rows, the one that ended first before the others."""
        job = self._jobs.c
        statement = select(job.id, job.enqueued_at).where(self._are(which))
        return [Key(*row) for row in await self._read(statement.order_by(job.finished_at))]

    async def batches(self, keys: Sequence[Key]) -> AsyncIterator[Sequence[Key]]:
        """The rows, in batches that one transaction may change: up to `BATCH`, and fewer where they are large."""
        for first in range(0, len(keys), BATCH):
            for batch in await self._ledger.in_batches(keys[first : first + BATCH], BATCH):
                yield batch

    async def latest(self, job_id: str) -> tuple[Key, State] | None:
        """The row of an id that was enqueued last, and its state."""
        rows = await self.all_of(job_id)
        return (Key(job_id, rows[0]["enqueued_at"]), State(rows[0]["state"])) if rows else None

    async def all_of(self, job_id: str) -> list[Mapping[str, Any]]:
        """The rows of an id, by column, the one that was enqueued last before the others."""
        job = self._jobs.c
        statement = select(self._jobs).where(job.id == job_id).order_by(job.enqueued_at.desc())
        fields = self._jobs.c.keys()
        return [dict(zip(fields, row, strict=True)) for row in await self._read(statement)]

    async def retry(self, keys: Sequence[Key], *, accept_pickle: bool = False) -> tuple[list[NewJob], list[Rejection]]:
        """Let failed jobs run again, one of `batches`; they are the caller's to publish, once this has returned.

        Args:
            accept_pickle: whether jobs that an arq producer has pickled may be read, as they must be.
        """
        for tries_left in reversed(range(_TRIES)):
            try:
                return await self._retry(keys, accept_pickle=accept_pickle)
            except IntegrityError:  # one of the ids has just been enqueued anew: now it can be seen
                if not tries_left:
                    raise
        raise AssertionError("unreachable")

    async def discard(self, keys: Sequence[Key]) -> list[Rejection]:
        """Let failed jobs be over, one of `batches`; they are pruned as others are."""
        async with scope() as work:
            session = await work.session(default_database())
            failed = await self._failed(session, keys)
            if failed:
                await execute(session, self._discard, [{"of_id": key.id, "of_time": key.enqueued_at} for key in failed])
        return _refused(keys, failed)

    async def _retry(self, keys: Sequence[Key], *, accept_pickle: bool) -> tuple[list[NewJob], list[Rejection]]:
        async with scope() as work:
            session = await work.session(default_database())
            failed = await self._failed(session, keys)
            taken = set((await execute(session, self._pending([key.id for key in failed]))).scalars())
            refusals = _refused(keys, failed)
            retried: list[NewJob] = []
            changes: list[dict[str, Any]] = []
            for row in failed.values():
                try:
                    payload = _payload(row, taken, accept_pickle=accept_pickle)
                except PayloadError as error:
                    refusals.append(Rejection(row["id"], str(error)))
                    continue
                taken.add(row["id"])
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
                await execute(session, self._revive, changes)
        return retried, refusals

    def _are(self, which: JobFilter) -> ColumnElement[bool]:
        job = self._jobs.c
        # Not a parameter: the indexes are for rows of certain states, and the planner has to see which is asked for.
        conditions = [job.state == bindparam(None, which.state.value, literal_execute=True)]
        if which.task is not None:
            conditions.append(job.task == which.task)
        if which.queue is not None:
            conditions.append(job.queue == which.queue)
        if which.error is not None:
            conditions.append(job.error.icontains(which.error, autoescape=True))
        return and_(*conditions)

    async def _failed(self, session: AnySession, keys: Sequence[Key]) -> dict[Key, Mapping[str, Any]]:
        """Those of the rows that have failed, locked in one order: two who do it do not wait for each other."""
        job = self._jobs.c
        # By ids alone, and sorted out here: a long list of pairs the planner may compare with every failed row.
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
    def _revive(self) -> Any:
        over = dict.fromkeys(("result", "error", "traceback", "started_at", "finished_at"), null())
        return (
            update(self._jobs)
            .where(self._is_named)
            .values(
                over
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
            .where(self._is_named)
            .values(state=State.DISCARDED.value, payload=null(), finished_at=now_ms())
        )

    @property
    def _is_named(self) -> ColumnElement[bool]:
        job = self._jobs.c
        return and_(job.id == bindparam("of_id", type_=Text), job.enqueued_at == bindparam("of_time", type_=BigInteger))

    async def _read(self, statement: Select[Any]) -> Sequence[Any]:
        async with scope() as work:
            session = await work.session(default_database())
            rows: Sequence[Any] = (await execute(session, statement)).all()
        return rows


def _by_kind(rows: Sequence[Any]) -> list[FailureCount]:
    """Tallies from rows of a count, a task, and the first and last by the alphabet of the errors that were counted."""
    jobs: Counter[tuple[str, str | None]] = Counter()
    errors: defaultdict[tuple[str, str | None], set[str]] = defaultdict(set)
    for count, task, first, last in rows:
        kind = task, None if first is None else kind_of(first)
        jobs[kind] += count
        errors[kind] |= {first, last} - {None}
    tallies = [
        FailureCount(count, task, *errors[task, kind])
        if len(errors[task, kind]) == 1
        else FailureCount(count, task, kind)
        for (task, kind), count in jobs.items()
    ]
    return sorted(tallies, key=lambda tally: (-tally.jobs, tally.task, tally.error or ""))


def earlier_ends(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How the job ended before it was retried, the first one first: each an `error`, `tries` and `finished_at`."""
    ends: list[dict[str, Any]] = json.loads(row["history"] or "[]")
    return ends


def _longer_history(row: Mapping[str, Any]) -> str:
    end = {field: row[field] for field in ("error", "tries", "finished_at")}
    return json.dumps([*earlier_ends(row), end][-_HISTORY:])


def _payload(row: Mapping[str, Any], taken: set[str], *, accept_pickle: bool) -> bytes:
    """What the job is published as.

    Raises:
        PayloadError: it cannot be; the text says why.
    """
    if row["id"] in taken:
        raise PayloadError("another job of this id is pending")
    if row["payload"] is None:
        raise PayloadError("its arguments are not known: they had expired, or were never there")
    return with_row(row["payload"], accept_pickle=accept_pickle)


def _due_now(row: Mapping[str, Any], payload: bytes) -> NewJob:
    """A row that is pending again, as it is to be published: it may wait for as long as it might at first."""
    return NewJob(row["id"], payload, row["task"], row["queue"], row["enqueued_at"], expires=row["patience"])


def _refused(keys: Sequence[Key], failed: Collection[Key]) -> list[Rejection]:
    return [Rejection(key.id, "it has changed meanwhile") for key in keys if key not in failed]

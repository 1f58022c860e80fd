"""``Failures``: failed jobs in groups, and retrying or discarding many of them.

1. A group is a task and a kind of error (`kind_of`). Groups are counted in the background, the latest failures first.
   Then only what is new is read. A page never waits for a count.
2. A bulk action is counted and confirmed first. It acts on the jobs that had failed by then, in batches.
3. It may retry one job first, and go on only if that one succeeds; and it may keep a pace.
4. Its progress is in Redis, so every process can show it, and ask it to stop.
"""

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict
from sqlalchemy.exc import SQLAlchemyError

from db.errors import DbError
from db.text.plural import plural
from worker.admin.deployment import Deployment
from worker.aio.background import Background
from worker.broker.bulk_runs import BulkRuns
from worker.broker.errors import RedisError
from worker.errors import LedgerError
from worker.ledger import State
from worker.ledger.admin import JobAdmin, Key, Rejection
from worker.ledger.audit import Audit, AuditRow
from worker.ledger.error_kind import kind_of
from worker.ledger.search import MOST_COUNTED, Failure, JobSearch, Place, RowFilter

SPAN = 3_600_000
"""Milliseconds of one bar of a group's sparkline."""
SPANS = 24
"""Bars of a sparkline."""

OTHER_ERRORS = "other errors"
"""The kind of errors past the most groups that are counted. It cannot be selected."""

_CHUNK = 1_000  # rows that are read and counted at once, in about 10 ms
_PATIENCE = 0.1  # seconds that a page waits for a count
_FRESH = 2.0  # seconds for which groups are not read again
_CHECK = 10.0  # seconds between two counts of all failed rows
_RESCAN = 15.0  # seconds between two whole counts because rows have disappeared
_WHOLE = 120.0  # seconds after which everything is counted again in any case
_OVERLAP = 10_000  # milliseconds: rows that were written so long ago may have been committed since
_MOST_GROUPS = 2_000

_CANARY_LIMIT = 300.0  # seconds that the first job may take
_POLL = 0.5  # seconds
_SILENT = 20.0  # seconds without progress after which a bulk action's process is taken to be dead


@dataclass(slots=True)
class FailureGroup:
    """Failed jobs of one task with one kind of error."""

    task: str
    kind: str
    """The error with # for each number."""
    jobs: int = 0
    newest: int = 0
    """Milliseconds since the epoch."""
    oldest: int = 0
    example: str = ""
    """The latest error, in full."""
    job_id: str = ""
    """The latest job."""
    enqueued_at: int = 0
    queues: Counter[str] = field(default_factory=Counter)
    by_span: Counter[int] = field(default_factory=Counter)
    """Jobs by `finished_at // SPAN`."""

    def bars(self, now: int) -> list[int]:
        """Jobs in each of the last `SPANS` spans, the oldest first."""
        last = now // SPAN
        return [self.by_span[span] for span in range(last - SPANS + 1, last + 1)]


class FailureOverview(NamedTuple):
    """All groups, as they were counted last."""

    groups: list[FailureGroup]
    """The ones with the latest failure first."""
    jobs: int
    """The jobs in all groups."""
    is_complete: bool
    """False while the first count goes on, or there are more than `MOST_COUNTED` failed jobs."""
    is_counting: bool
    as_of: int
    """Milliseconds since the epoch."""


class BulkAction(StrEnum):
    RETRY = "retry"
    DISCARD = "discard"


class Selection(BaseModel):
    """Which failed jobs a bulk action is for. All conditions must hold."""

    model_config = ConfigDict(frozen=True)

    task: str | None = None
    kind: str | None = None
    queue: str | None = None
    until: int
    """Jobs that failed later are not meant: milliseconds since the epoch."""

    @property
    def row_filter(self) -> RowFilter:
        return RowFilter(task=self.task, queue=self.queue, until=self.until)

    @property
    def subject(self) -> str:
        """The selection in words."""
        parts = [self.task or "all tasks", *([self.kind] if self.kind is not None else [])]
        return ": ".join(parts) + (f" (queue {self.queue})" if self.queue else "")


class BulkState(StrEnum):
    """How far a bulk action is."""

    TRYING = "trying"
    """One job is retried first."""
    RUNNING = "running"
    DONE = "done"
    STOPPED = "stopped"
    """An operator has asked it to stop, or the first job failed again."""
    BROKEN = "broken"
    """An error has ended it."""

    @property
    def is_over(self) -> bool:
        return self in (BulkState.DONE, BulkState.STOPPED, BulkState.BROKEN)


class BulkProgress(BaseModel):
    """A bulk action, and how far it has come."""

    model_config = ConfigDict(frozen=True)

    id: str
    action: BulkAction
    actor: str
    selection: Selection
    total: int
    total_is_more: bool = False
    pace: float | None = None
    """Jobs a second. None: as fast as it goes."""
    one_first: bool = False
    state: BulkState = BulkState.RUNNING
    done: int = 0
    rejected: int = 0
    note: str = ""
    first_job: str | None = None
    started_at: int = 0
    """Milliseconds since the epoch."""
    updated_at: int = 0

    @property
    def is_silent(self) -> bool:
        """Whether the process that did it seems to be gone."""
        return not self.state.is_over and _now() - self.updated_at > _SILENT * 1000


class Failures:
    """The failed jobs of a deployment.

    Args:
        deployment: where they are (default: the servers of this process).
        background: where counts and bulk actions run (default: its own, which ends with the event loop).
        accept_pickle: whether jobs that an arq producer has pickled may be read, to retry them.
    """

    def __init__(
        self,
        deployment: Deployment | None = None,
        *,
        background: Background | None = None,
        accept_pickle: bool = False,
    ) -> None:
        self._deployment = deployment or Deployment.of_process()
        self._background = background or Background()
        self._runs = BulkRuns(self._deployment.broker.connections)
        self._accept_pickle = accept_pickle
        ledger = self._deployment.ledger
        self._search = None if ledger is None else JobSearch(ledger.name)
        self._admin = None if ledger is None else JobAdmin(ledger.name)
        self._audit = None if ledger is None else Audit(ledger.name)
        self._counted = _Counted()
        self._last_read = self._last_check = self._last_scan = -_WHOLE
        self._reading: asyncio.Task[None] | None = None

    async def overview(self) -> FailureOverview:
        """The groups as far as they are counted. Starts a new count if the last one is old."""
        is_old = time.monotonic() - self._last_read > _FRESH
        if self._search is not None and is_old and (self._reading is None or self._reading.done()):
            self._reading = self._background.start(self._read(self._search))
        if self._reading is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._reading), _PATIENCE)
        counted = self._counted
        groups = sorted(counted.groups.values(), key=lambda group: -group.newest)
        is_counting = self._reading is not None and not self._reading.done()
        return FailureOverview(groups, counted.jobs, counted.is_complete, is_counting, counted.as_of)

    def group(self, task: str, kind: str) -> FailureGroup | None:
        """A group, as it was counted last."""
        return self._counted.groups.get((task, kind))

    def forget(self) -> None:
        """Count everything again for the next page, as an action has changed it."""
        self._last_read = self._last_scan = -_WHOLE

    def count(self, selection: Selection) -> tuple[int, bool]:
        """How many jobs a selection has, by the last count, and whether there may be more."""
        groups = [
            group
            for group in self._counted.groups.values()
            if selection.task in (None, group.task) and selection.kind in (None, group.kind)
        ]
        if selection.queue is not None:
            number = sum(group.queues[selection.queue] for group in groups)
        else:
            number = sum(group.jobs for group in groups)
        return number, not self._counted.is_complete

    async def start(
        self,
        action: BulkAction,
        selection: Selection,
        *,
        actor: str,
        one_first: bool = False,
        pace: float | None = None,
    ) -> BulkProgress:
        """Begin a bulk action in this process, and return while it goes on.

        Args:
            one_first: retry the latest job first, and go on only once it has succeeded.
            pace: at most so many jobs a second.

        Raises:
            LedgerError: there is no ledger.
        """
        if self._admin is None or self._search is None:
            raise LedgerError("failed jobs are kept in the ledger, and this process has no default database")
        total, is_more = self.count(selection)
        progress = BulkProgress(
            id=secrets.token_urlsafe(9),
            action=action,
            actor=actor,
            selection=selection,
            total=total,
            total_is_more=is_more,
            pace=pace,
            one_first=one_first and action is BulkAction.RETRY,
            started_at=_now(),
        )
        run = _BulkRun(self, self._admin, self._search, progress)
        await run.begin()
        self._background.start(run.go_on())
        return run.progress

    async def progress(self, run_id: str) -> BulkProgress | None:
        """How far a bulk action has come, in whatever process. None if there is none of this id."""
        raw = await self._runs.read(run_id)
        return None if raw is None else BulkProgress.model_validate_json(raw)

    async def stop(self, run_id: str) -> None:
        """Ask a bulk action to stop after its present batch."""
        await self._runs.stop(run_id)

    async def save(self, progress: BulkProgress) -> bool:
        """Write how far an action has come. Returns whether it may go on."""
        return await self._runs.save(progress.id, progress.model_dump_json().encode())

    async def act(self, action: BulkAction, keys: Sequence[Key]) -> list[Rejection]:
        """Retry or discard one batch."""
        assert self._admin is not None  # noqa: S101 - checked in `start`
        if action is BulkAction.DISCARD:
            return await self._admin.discard(keys)
        retried, rejections = await self._admin.retry(keys, accept_pickle=self._accept_pickle)
        # If Redis does not take them, the relay of a worker publishes them within a few seconds.
        with contextlib.suppress(RedisError, OSError):
            await self._deployment.broker.publish(retried)
        return rejections

    async def begin_audit(self, progress: BulkProgress) -> int | None:
        """Write the audit row of a bulk action."""
        if self._audit is None:
            return None
        detail = {"jobs": progress.total, "pace": progress.pace, "one_first": progress.one_first, "run": progress.id}
        action = f"job.{progress.action}_many"
        return await self._audit.begin(AuditRow(progress.actor, action, progress.selection.subject, detail))

    async def end_audit(self, row_id: int | None, outcome: str) -> None:
        """Write what came of it."""
        if self._audit is not None and row_id is not None:
            await self._audit.set_outcome(row_id, outcome)

    async def _read(self, search: JobSearch) -> None:
        now = time.monotonic()
        is_old = now - self._last_scan > _WHOLE
        if not is_old and now - self._last_check > _CHECK:
            self._last_check = now
            number = await search.count(State.FAILED)
            is_old = min(number, MOST_COUNTED) < self._counted.jobs and now - self._last_scan > _RESCAN
        if is_old or not await self._read_new(search):
            await self._read_all(search)
        self._last_read = time.monotonic()

    async def _read_new(self, search: JobSearch) -> bool:
        """Add the failures since the last count. False if there are too many."""
        failures = await search.failures(None, self._counted.newest - _OVERLAP, _CHUNK)
        if len(failures) == _CHUNK:
            return False
        self._counted.as_of = _now()
        self._counted.add([each for each in failures if (each.id, each.enqueued_at) not in self._counted.recent])
        return True

    async def _read_all(self, search: JobSearch) -> None:
        counted = _Counted()
        if not self._counted.is_complete:
            self._counted = counted  # the first count is shown while it goes on
        place: Place | None = None
        while counted.jobs < MOST_COUNTED:
            began = time.monotonic()
            failures = await search.failures(place, None, _CHUNK)
            counted.add(failures)
            if len(failures) < _CHUNK:
                counted.is_complete = True
                break
            place = failures[-1].place
            await asyncio.sleep(time.monotonic() - began)  # half of the time is for pages
        counted.as_of = _now()
        self._counted = counted
        self._last_scan = self._last_check = time.monotonic()


class _Counted:
    """Failures by group."""

    def __init__(self) -> None:
        self.groups: dict[tuple[str, str], FailureGroup] = {}
        self.jobs = 0
        self.newest = 0
        self.recent: set[tuple[str, int]] = set()
        """The jobs of the last `_OVERLAP`."""
        self.is_complete = False
        self.as_of = _now()

    def add(self, failures: Sequence[Failure]) -> None:
        """Count some failures."""
        for failure in failures:
            error = failure.error or ""
            key = (failure.task, kind_of(error))
            group = self.groups.get(key)
            if group is None:
                if len(self.groups) >= _MOST_GROUPS:
                    key = (failure.task, OTHER_ERRORS)
                group = self.groups.setdefault(key, FailureGroup(*key, oldest=failure.finished_at))
            group.jobs += 1
            group.queues[failure.queue] += 1
            group.by_span[failure.finished_at // SPAN] += 1
            group.oldest = min(group.oldest, failure.finished_at)
            if failure.finished_at >= group.newest:
                group.newest = failure.finished_at
                group.example, group.job_id, group.enqueued_at = error, failure.id, failure.enqueued_at
        self.jobs += len(failures)
        self.newest = max([self.newest, *(failure.finished_at for failure in failures)])
        self.recent |= {(each.id, each.enqueued_at) for each in failures if each.finished_at >= self.newest - _OVERLAP}


class _BulkRun:
    """One bulk action, while it goes on in this process."""

    def __init__(self, failures: Failures, admin: JobAdmin, search: JobSearch, progress: BulkProgress) -> None:
        self._failures = failures
        self._admin = admin
        self._search = search
        self.progress = progress
        self._audit_row: int | None = None
        self._may_go_on = True

    async def begin(self) -> None:
        """Write the audit row, and that the action has begun."""
        self._audit_row = await self._failures.begin_audit(self.progress)
        await self._save(state=BulkState.TRYING if self.progress.one_first else BulkState.RUNNING)

    async def go_on(self) -> None:
        """Do the action, to its end or until it is stopped."""
        try:
            if not self.progress.one_first or await self._try_one():
                await self._all()
        except (SQLAlchemyError, DbError, RedisError, LedgerError, OSError) as error:
            await self._over(BulkState.BROKEN, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await self._over(BulkState.STOPPED, "the process that did it ended")
            raise
        finally:
            self._failures.forget()

    async def _all(self) -> None:
        selection, pace = self.progress.selection, self.progress.pace
        at_once = None if pace is None else max(1, round(pace))
        next_batch = time.monotonic()
        async for chunk in self._search.failed_keys(selection.row_filter, selection.kind):
            keys = [Key(*key) for key in chunk]
            for first in range(0, len(keys), at_once or len(keys)):
                async for batch in self._admin.batches(keys[first : first + (at_once or len(keys))]):
                    await self._batch(batch)
                    if not self._may_go_on:
                        await self._over(BulkState.STOPPED, "stopped by hand")
                        return
                if pace is not None:
                    next_batch = max(next_batch, time.monotonic() - 1) + (at_once or 1) / pace
                    await self._pause(next_batch - time.monotonic())
        await self._over(BulkState.DONE)

    async def _batch(self, batch: Sequence[Key]) -> None:
        rejections = await self._failures.act(self.progress.action, batch)
        progress = self.progress
        note = f"{rejections[-1].id}: {rejections[-1].why}" if rejections else progress.note
        done = progress.done + len(batch) - len(rejections)
        await self._save(done=done, rejected=progress.rejected + len(rejections), note=note)

    async def _try_one(self) -> bool:
        """Retry the latest job alone, and wait for its end. Returns whether to go on with the rest."""
        selection = self.progress.selection
        first = [
            key
            async for chunk in self._search.failed_keys(selection.row_filter, selection.kind, most=1)
            for key in chunk
        ]
        if not first:
            return True
        key = Key(*first[0])
        await self._save(first_job=key.id)
        if rejections := await self._failures.act(BulkAction.RETRY, [key]):
            await self._over(BulkState.STOPPED, f"{key.id}: {rejections[0].why}")
            return False
        await self._save(done=1)
        ends = time.monotonic() + _CANARY_LIMIT
        while time.monotonic() < ends:
            row = await self._search.row_of(*key)
            state = None if row is None else State(row["state"])
            if state in (State.DONE, None):
                await self._save(state=BulkState.RUNNING)
                return self._may_go_on
            if row is not None and state is not State.PENDING:
                await self._over(
                    BulkState.STOPPED, f"the first job ended {state}: {row['error'] or 'without an error'}"
                )
                return False
            await self._pause(_POLL)
            if not self._may_go_on:
                await self._over(BulkState.STOPPED, "stopped by hand")
                return False
        await self._over(BulkState.STOPPED, f"the first job has not ended within {_CANARY_LIMIT:.0f} s")
        return False

    async def _pause(self, seconds: float) -> None:
        """Sleep, and say now and then that the action is alive."""
        ends = time.monotonic() + seconds
        while self._may_go_on and (left := ends - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 1.0))
            await self._save()

    async def _over(self, state: BulkState, note: str | None = None) -> None:
        await self._save(state=state, **({} if note is None else {"note": note}))
        progress = self.progress
        outcome = f"{state}: {plural(progress.done, 'job')}" + (
            f", {progress.rejected} left as they are" if progress.rejected else ""
        )
        await self._failures.end_audit(self._audit_row, outcome + (f" ({note})" if note else ""))

    async def _save(self, **changes: Any) -> None:
        self.progress = self.progress.model_copy(update=changes | {"updated_at": _now()})
        self._may_go_on = await self._failures.save(self.progress)


def _now() -> int:
    return time.time_ns() // 1_000_000

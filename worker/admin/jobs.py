"""``Jobs``: finding jobs in every state, and all that is known of one job.

1. Scheduled, waiting and running jobs are read from Redis, ended ones from the ledger. Of ended jobs without a job row
   Redis has the latest thousand of each queue.
2. A page is read by its place (keyset). A filter that no index serves ends with the page or with its time, and the next
   page goes on there.
3. `Redact` sees each value before it is shown or searched. So a search finds nothing that is masked.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from worker.admin.deployment import Deployment
from worker.broker.progress import ProgressRecord, ProgressRecords
from worker.broker.queue_pages import QueuedJob, QueuePages
from worker.broker.records import to_ms
from worker.errors import PayloadError
from worker.foreign_codec import PICKLE_MAGIC
from worker.ledger import State
from worker.ledger.admin import earlier_ends
from worker.ledger.search import MOST_COUNTED, FoundRow, JobSearch, Place, RowFilter
from worker.message import Message
from worker.metrics.reader import MetricsReader
from worker.metrics.records import EndedJob, RunningJob

PAGE = 50
"""Jobs on one page."""
_BUDGET = 0.12  # seconds after which a search in a queue reads no more of it
_SCAN = 250  # jobs of a queue that are read at once
_SCAN_WHOLE = 100  # likewise, with their whole payloads
_RUNNING = 1_000  # the most running jobs of a queue that are listed
_DONE_OUTCOMES = ("completed", "duplicate")
_RESULT = frozenset({"t", "f", "et", "s", "r", "st", "ft"})  # what a kept result has: see worker/message.py
_TASK = re.compile(rb'"f":"((?:[^"\\]|\\.)*)"')
_ENQUEUED_AT = re.compile(rb'"et":(\d+)(?:,"ledger":true)?}\s*$')


class JobState(StrEnum):
    """The state of a job, as people see it."""

    SCHEDULED = "scheduled"
    """Due later, for the first time or after a failed try."""
    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    ABORTED = "aborted"
    DISCARDED = "discarded"
    EXPIRED = "expired"

    @property
    def is_ended(self) -> bool:
        return self not in LIVE_STATES


LIVE_STATES = (JobState.SCHEDULED, JobState.WAITING, JobState.RUNNING)

Redact = Callable[[str, Any, Any], Any]
"""Gets the task, the part of the job and its value; returns the value to show."""


@dataclass(frozen=True, slots=True)
class JobQuery:
    """What to list. All conditions must hold."""

    state: JobState = JobState.DONE
    id: str | None = None
    """The id, or its beginning. Then `state` does not count."""
    task: str | None = None
    queue: str | None = None
    error: str | None = None
    text: str | None = None
    """A part of the arguments."""
    since: int | None = None
    """When the job ended, or is due: milliseconds since the epoch."""
    until: int | None = None

    @property
    def is_filtered(self) -> bool:
        """Whether there is a condition besides the state."""
        return any(
            value is not None
            for value in (self.id, self.task, self.queue, self.error, self.text, self.since, self.until)
        )


@dataclass(frozen=True, slots=True)
class JobLine:
    """A job in a list. Times are milliseconds since the epoch."""

    id: str
    enqueued_at: int | None
    task: str
    queue: str
    state: JobState
    arguments: Any
    """The beginning, redacted. None if they are unknown."""
    tries: int = 0
    due: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    error: str | None = None
    is_published: bool = True
    """False: its row is pending, and Redis does not have it."""
    worker: str = ""
    """The worker that runs it, or ran it last. Empty if that is not known."""

    @property
    def place(self) -> Place:
        return Place(self.finished_at or 0, self.id, self.enqueued_at or 0)


class JobPage(NamedTuple):
    """One page of a list."""

    lines: list[JobLine]
    next: str | None
    """Where the next page begins. None if this is the last one."""
    searched_to: int | None
    """If the search ended with its time: the time of the job that it got to, in milliseconds since the epoch."""


class Count(NamedTuple):
    """A number of jobs."""

    number: int
    is_more: bool = False
    """Whether there are more than `number`."""

    @classmethod
    def up_to(cls, number: int) -> "Count":
        """A count of the ledger, which ends at a limit."""
        return cls(min(number, MOST_COUNTED), number > MOST_COUNTED)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt, or the end of a job before it was retried by hand."""

    number: int | None
    state: str
    worker: str | None = None
    started_at: int | None = None
    finished_at: int | None = None
    error: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class JobDetail:
    """All that Redis and the ledger know of one job, redacted. Times are milliseconds since the epoch."""

    id: str
    enqueued_at: int | None
    task: str
    queue: str
    state: JobState
    arguments: Any = None
    arguments_problem: str = ""
    """Why the arguments cannot be shown."""
    result: Any = None
    has_result: bool = False
    error: str | None = None
    traceback: str | None = None
    tries: int = 0
    due: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    expires: int | None = None
    """Milliseconds past its due time in which it may start."""
    has_row: bool = False
    is_published: bool = True
    parent: str | None = None
    trace_id: str | None = None
    attempts: tuple[Attempt, ...] = ()
    progress: ProgressRecord | None = None
    """What the running job has reported last."""
    others: tuple[JobLine, ...] = field(default=())
    """Other jobs that have used this id, the latest first."""


class Jobs:
    """The jobs of a deployment.

    Args:
        deployment: where the jobs are (default: the servers of this process).
        redact: masks secrets in what is shown and searched.
    """

    def __init__(self, deployment: Deployment | None = None, *, redact: Redact) -> None:
        self._deployment = deployment or Deployment.of_process()
        self._redact = redact
        self._queues = QueuePages(self._deployment.broker.connections)
        self._metrics = MetricsReader(self._deployment.broker)
        ledger = self._deployment.ledger
        self._search = None if ledger is None else JobSearch(ledger.name)

    async def page(self, query: JobQuery, after: str | None = None, limit: int = PAGE) -> JobPage:
        """A page of jobs.

        Args:
            after: `next` of the page before.

        Raises:
            ValueError: `after` is no place.
        """
        if query.id is not None:
            return await self._with_id(query.id, limit)
        match query.state:
            case JobState.RUNNING:
                return await self._running(query, limit)
            case JobState.SCHEDULED | JobState.WAITING:
                return await self._queued(query, after, limit)
            case _:
                return await self._ended(query, after, limit)

    async def counts(self) -> dict[JobState, Count]:
        """The number of jobs in each state."""
        now = await self._queues.now()
        by_queue = await self._queues.count(self._deployment.queues, now)
        running = sum([len(await self._queues.running(name, now, _RUNNING)) for name in self._deployment.queues])
        later = sum(count.later for count in by_queue.values())
        counts = {
            JobState.SCHEDULED: Count(max(later - running, 0)),
            JobState.WAITING: Count(sum(count.due for count in by_queue.values())),
            JobState.RUNNING: Count(running, running >= _RUNNING),
        }
        for state in JobState:
            if state.is_ended:
                number = 0 if self._search is None else await self._search.count(State(state))
                counts[state] = Count.up_to(number)
        return counts

    async def detail(self, job_id: str, enqueued_at: int | None = None) -> JobDetail | None:
        """A job: the one that was enqueued at this time, or the last one of this id. None if there is none."""
        rows = [] if self._search is None else await self._search.all_of(job_id)
        live = await self._live(job_id, rows)
        if live is not None and (enqueued_at is None or live.enqueued_at in (enqueued_at, None)):
            row = next((row for row in rows if row["enqueued_at"] == live.enqueued_at), None)
            detail = self._live_detail(live, row, rows, (await self._holders()).get(job_id))
            return replace(detail, progress=await self._progress_of(detail))
        row = next((row for row in rows if enqueued_at in (None, row["enqueued_at"])), None)
        return await self._without_row(job_id, enqueued_at) if row is None else self._row_detail(row, rows)

    async def _progress_of(self, job: JobDetail) -> ProgressRecord | None:
        if job.state is not JobState.RUNNING:
            return None
        record = await ProgressRecords(self._deployment.broker.connections).read(job.queue, job.id)
        return record if record is not None and job.enqueued_at in (None, record.enqueued_at) else None

    async def children(self, job_id: str, limit: int = 20) -> list[JobLine]:
        """The jobs that a job has enqueued, as far as the ledger knows."""
        rows = [] if self._search is None else await self._search.children(job_id, limit)
        return [self._of_row(row) for row in rows]

    async def _ended(self, query: JobQuery, after: str | None, limit: int) -> JobPage:
        place = None if after is None else _row_place(after)
        lines, searched_to = await self._ended_rows(query, place, limit + 1)
        if query.text is None:  # their arguments are not known
            others = await self._ended_without_row(query, place)
            lines += [line for line in others if searched_to is None or line.place > searched_to]
        lines.sort(key=lambda line: line.place, reverse=True)
        shown, has_more = lines[:limit], len(lines) > limit
        following = shown[-1].place if has_more else searched_to
        if query.text is not None and self._search is not None:
            payloads = await self._search.payloads([(line.id, line.enqueued_at or 0) for line in shown])
            shown = [line for line in shown if self._shows(line, payloads.get((line.id, line.enqueued_at or 0)), query)]
        return JobPage(
            shown,
            None if following is None else to_json(following).decode(),
            None if searched_to is None or has_more else searched_to.finished_at,
        )

    async def _ended_rows(self, query: JobQuery, place: Place | None, limit: int) -> tuple[list[JobLine], Place | None]:
        if self._search is None:
            return [], None
        row_filter = RowFilter(query.task, query.queue, query.error, query.text, query.since, query.until)
        found = await self._search.ended(State(query.state), row_filter, place, limit)
        return [self._of_row(row) for row in found.rows], found.searched_to

    async def _ended_without_row(self, query: JobQuery, place: Place | None) -> list[JobLine]:
        queues = [name for name in self._deployment.queues if query.queue in (None, name)]
        lines = [self._of_ended(queue, job) for queue in queues for job in await self._metrics.latest(queue)]
        return [line for line in lines if _matches(line, query) and (place is None or line.place < place)]

    async def _queued(self, query: JobQuery, after: str | None, limit: int) -> JobPage:
        """Scheduled or waiting jobs in the order of their due times, one queue after the other."""
        now = await self._queues.now()
        queues = [name for name in self._deployment.queues if query.queue in (None, name)]
        place = None if after is None else _queue_place(after)
        if place is not None:
            queues = queues[queues.index(place[0]) :] if place[0] in queues else []
        scheduled = query.state is JobState.SCHEDULED
        first = float(max(now if scheduled else 0, query.since or 0))
        ends = time.monotonic() + _BUDGET
        size = limit + 1 if not (query.is_filtered or scheduled) else _SCAN if query.text is None else _SCAN_WHOLE
        lines: list[JobLine] = []
        last: QueuedJob | None = None
        for name in queues:
            at = None if place is None or place[0] != name else place[1:]
            while True:
                jobs = await self._queues.scan(name, at, first, size)
                payloads = await self._payloads(jobs, query)
                for job in jobs:
                    if (not scheduled and job.score > now) or (query.until is not None and job.score > query.until):
                        jobs = []
                        break
                    if len(lines) == limit:
                        assert last is not None  # noqa: S101 - there are lines
                        return JobPage(lines, _queue_cursor(last), None)
                    last = job
                    line = None if job.in_progress else self._matching(job, query, now, payloads)
                    if line is not None:
                        lines.append(line)
                if len(jobs) < size:
                    break
                at = (jobs[-1].score, jobs[-1].id)
                if time.monotonic() > ends:
                    return JobPage(lines, _queue_cursor(jobs[-1]), int(jobs[-1].score))
        return JobPage(lines, None, None)

    async def _running(self, query: JobQuery, limit: int) -> JobPage:
        now, holders = await self._queues.now(), await self._holders()
        lines: list[JobLine] = []
        for name in self._deployment.queues:
            if query.queue in (None, name):
                jobs = await self._queues.running(name, now, _RUNNING)
                payloads = await self._payloads(jobs, query)
                for job in jobs:
                    if len(lines) < limit and (line := self._matching(job, query, now, payloads)) is not None:
                        holder = holders.get(line.id)
                        lines.append(line if holder is None else holder.on(line))
        return JobPage(lines, None, None)

    async def _holders(self) -> dict[str, "_Holder"]:
        """The workers that run jobs now, by the job's id."""
        workers = await self._metrics.workers(self._deployment.queues)
        return {job.id: _Holder(worker.id, job) for worker in workers if not worker.is_silent for job in worker.jobs}

    async def _with_id(self, prefix: str, limit: int) -> JobPage:
        """Jobs whose ids begin so in the ledger, and the job of exactly this id in Redis."""
        now = await self._queues.now()
        lines = [self._of_queued(job, now) for job in await self._queues.find(self._deployment.queues, prefix)]
        known = {(line.id, line.enqueued_at) for line in lines}
        rows = [] if self._search is None else await self._search.by_id(prefix, limit)
        lines += [self._of_row(row) for row in rows if (row.id, row.enqueued_at) not in known]
        return JobPage(lines[:limit], None, None)

    async def _payloads(self, jobs: Sequence[QueuedJob], query: JobQuery) -> dict[str, bytes | None]:
        """The whole payloads of jobs of one queue, if the query needs them."""
        if query.text is None or not jobs:
            return {}
        ids = [job.id for job in jobs]
        return dict(zip(ids, await self._queues.payloads(jobs[0].queue, ids), strict=True))

    def _matching(
        self, job: QueuedJob, query: JobQuery, now: int, payloads: Mapping[str, bytes | None]
    ) -> JobLine | None:
        line = self._of_queued(job, now)
        if query.task is not None and line.task != query.task:
            return None
        if query.error is not None:
            return None  # only ended jobs have an error
        if query.text is not None and not self._shows(line, payloads.get(job.id), query):
            return None
        return line

    def _shows(self, line: JobLine, payload: bytes | None, query: JobQuery) -> bool:
        """Whether the arguments, as they are shown, contain the text of the query."""
        part = to_json(query.text)[1:-1]
        if payload is None or part not in payload:  # most are not decoded
            return False
        arguments, _ = self._arguments(line.task, payload)
        return arguments is not None and part in to_json(arguments, inf_nan_mode="constants", fallback=repr)

    def _of_row(self, row: FoundRow) -> JobLine:
        state = State(row.state)
        due = row.due or 0
        shown = JobState(state) if state is not State.PENDING else _pending_state(due)
        return JobLine(
            row.id,
            row.enqueued_at,
            row.task,
            row.queue,
            shown,
            self._beginning(row.task, row.payload),
            row.tries,
            row.due,
            row.started_at,
            row.finished_at,
            None if row.error is None else self._redact(row.task, "error", row.error),
            is_published=state is not State.PENDING,
        )

    def _of_queued(self, job: QueuedJob, now: int) -> JobLine:
        head = _TASK.search(job.head)
        task = _unescaped(head[1]) if head else ""
        state = _queued_state(job, now)
        return JobLine(
            job.id,
            _enqueued_at(job.tail),
            task,
            job.queue,
            state,
            self._beginning(task, job.head),
            job.tries,
            None if state is JobState.RUNNING else int(job.score),
        )

    async def _live(self, job_id: str, rows: Sequence[Mapping[str, Any]]) -> "_Live | None":
        queues = dict.fromkeys([*self._deployment.queues, *(row["queue"] for row in rows)])
        found = await self._queues.find([*queues], job_id)
        if not found:
            return None
        (payload,) = await self._queues.payloads(found[0].queue, [job_id])
        return _Live(found[0], payload, _enqueued_at(found[0].tail), await self._queues.now())

    async def _without_row(self, job_id: str, enqueued_at: int | None) -> JobDetail | None:
        """An ended job that has no row, from the list of the latest ones, and from its result if that is kept.

        The list is written once a second, so the result alone tells of a job that has just ended.
        """
        for queue in self._deployment.queues:
            for job in await self._metrics.latest(queue):
                if job.id == job_id and enqueued_at in (None, job.enqueued_at):
                    kept = await self._kept_result(queue, job_id, job.enqueued_at)
                    return self._ended_detail(self._of_ended(queue, job), job, kept)
        for queue in self._deployment.queues:
            kept = await self._kept_result(queue, job_id, enqueued_at)
            if kept:
                job = _ended_by(kept, job_id)
                return self._ended_detail(self._of_ended(queue, job), job, kept)
        return None

    async def _kept_result(self, queue: str, job_id: str, enqueued_at: int | None) -> Mapping[str, Any]:
        snapshot = await self._deployment.broker.status(queue, job_id, enqueued_at)
        try:
            data = from_json(snapshot.set_aside or snapshot.result or b"{}")
        except ValueError:  # a pickle, for an arq client
            return {}
        is_result = isinstance(data, dict) and data.keys() >= _RESULT
        return data if is_result and enqueued_at in (None, data["et"]) else {}

    def _ended_detail(self, line: JobLine, job: EndedJob, kept: Mapping[str, Any]) -> JobDetail:
        arguments, problem = None, "They are no longer known."
        if "k" in kept:
            value = {"args": kept.get("a") or [], "kwargs": kept["k"]}
            arguments, problem = self._redact(line.task, "arguments", value), ""
        has_result = kept.get("s") is True
        return JobDetail(
            line.id,
            line.enqueued_at,
            line.task,
            line.queue,
            line.state,
            arguments,
            problem,
            result=self._redact(line.task, "result", kept.get("r")) if has_result else None,
            has_result=has_result,
            error=line.error,
            tries=job.attempt,
            started_at=job.started_at,
            finished_at=job.finished_at,
            attempts=(Attempt(job.attempt, line.state, job.worker, job.started_at, job.finished_at, line.error),),
        )

    def _of_ended(self, queue: str, job: EndedJob) -> JobLine:
        state = JobState.DONE if job.outcome in _DONE_OUTCOMES else JobState(job.outcome)
        error = self._redact(job.task, "error", job.error) if job.error else None
        return JobLine(
            job.id,
            job.enqueued_at,
            job.task,
            queue,
            state,
            None,
            job.attempt,
            None,
            job.started_at,
            job.finished_at,
            error,
            worker=job.worker,
        )

    def _live_detail(
        self,
        live: "_Live",
        row: Mapping[str, Any] | None,
        rows: Sequence[Mapping[str, Any]],
        holder: "_Holder | None",
    ) -> JobDetail:
        line = self._of_queued(live.job, live.now)
        payload = live.payload or (None if row is None else row["payload"])
        task = line.task or ("" if row is None else row["task"])
        arguments, problem = self._arguments(task, payload)
        origin = _origin(row, payload)
        return JobDetail(
            line.id,
            live.enqueued_at,
            task,
            line.queue,
            line.state,
            arguments,
            problem,
            tries=line.tries,
            due=line.due,
            expires=None if row is None else row["patience"],
            has_row=row is not None,
            parent=origin[0],
            trace_id=origin[1],
            started_at=None if holder is None else to_ms(holder.job.since),
            attempts=(*(() if holder is None else (holder.attempt,)), *self._attempts(row)),
            others=self._others(rows, live.enqueued_at),
        )

    def _row_detail(self, row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> JobDetail:
        task, state = row["task"], State(row["state"])
        arguments, problem = self._arguments(task, row["payload"])
        origin = _origin(row, row["payload"])
        has_result = state is State.DONE and row["result"] is not None
        return JobDetail(
            row["id"],
            row["enqueued_at"],
            task,
            row["queue"],
            _pending_state(row["due"] or 0) if state is State.PENDING else JobState(state),
            arguments,
            problem,
            result=self._redact(task, "result", _decoded(row["result"])) if has_result else None,
            has_result=has_result,
            error=None if row["error"] is None else self._redact(task, "error", row["error"]),
            traceback=None if row["traceback"] is None else self._redact(task, "traceback", row["traceback"]),
            tries=row["tries"],
            due=row["due"],
            started_at=row["started_at"],
            finished_at=row["finished_at"],
            expires=row["patience"],
            has_row=True,
            is_published=state is not State.PENDING,
            parent=origin[0],
            trace_id=origin[1],
            attempts=self._attempts(row),
            others=self._others(rows, row["enqueued_at"]),
        )

    def _attempts(self, row: Mapping[str, Any] | None) -> tuple[Attempt, ...]:
        if row is None:
            return ()
        attempts = [
            Attempt(
                end["tries"],
                "failed",
                finished_at=end["finished_at"],
                error=self._redact(row["task"], "error", end["error"]) if end["error"] else None,
                note="then retried by hand",
            )
            for end in earlier_ends(row)
        ]
        if row["state"] != State.PENDING:
            error = None if row["error"] is None else self._redact(row["task"], "error", row["error"])
            attempts.append(Attempt(row["tries"], row["state"], None, row["started_at"], row["finished_at"], error))
        return tuple(reversed(attempts))

    def _others(self, rows: Sequence[Mapping[str, Any]], enqueued_at: int | None) -> tuple[JobLine, ...]:
        return tuple(
            self._of_row(FoundRow(*(row[name] for name in FoundRow._fields)))
            for row in rows
            if row["enqueued_at"] != enqueued_at
        )

    def _arguments(self, task: str, payload: bytes | None) -> tuple[Any, str]:
        """The arguments, redacted, or why they cannot be shown."""
        if payload is None:
            return None, "They are no longer known."
        if payload[:1] == PICKLE_MAGIC:
            return None, f"A pickle of {len(payload):,} bytes, which is not loaded here."
        try:
            message = Message.decode("", payload)
        except PayloadError as error:
            return None, f"They cannot be read: {error}"
        value = {"args": list(message.args), "kwargs": dict(message.kwargs)}
        return self._redact(task, "arguments", value), ""

    def _beginning(self, task: str, head: bytes | None) -> Any:
        """The arguments at the beginning of a payload, redacted. A value that is cut off is left out."""
        if not head or head[:1] != b"{":
            return None
        try:
            data = from_json(head, allow_partial=True)
        except ValueError:
            return None
        value = {"args": data.get("a") or [], "kwargs": data.get("k") or {}}
        return self._redact(task, "arguments", value)


class _Live(NamedTuple):
    """A job that Redis has."""

    job: QueuedJob
    payload: bytes | None
    enqueued_at: int | None
    now: int


class _Holder(NamedTuple):
    """The worker that runs a job."""

    worker: str
    job: RunningJob

    @property
    def attempt(self) -> Attempt:
        return Attempt(self.job.attempt, "running", self.worker, to_ms(self.job.since))

    def on(self, line: JobLine) -> JobLine:
        """The line of the job, with its worker."""
        return replace(line, worker=self.worker, started_at=to_ms(self.job.since))


def _matches(line: JobLine, query: JobQuery) -> bool:
    """Whether an ended job without a row belongs into a list."""
    finished_at = line.finished_at or 0
    return (
        line.state is query.state
        and query.task in (None, line.task)
        and (query.error is None or query.error.casefold() in (line.error or "").casefold())
        and (query.since is None or finished_at >= query.since)
        and (query.until is None or finished_at <= query.until)
    )


def _queued_state(job: QueuedJob, now: int) -> JobState:
    if job.in_progress:
        return JobState.RUNNING
    return JobState.SCHEDULED if job.score > now else JobState.WAITING


def _pending_state(due: int) -> JobState:
    return JobState.SCHEDULED if due > time.time() * 1000 else JobState.WAITING


def _origin(row: Mapping[str, Any] | None, payload: bytes | None) -> tuple[str | None, str | None]:
    """The id of the parent, and the id of the trace."""
    parent, traceparent = (None, None) if row is None else (row.get("parent"), row.get("traceparent"))
    if parent is None and traceparent is None and payload and payload[:1] == b"{":
        data = from_json(payload, allow_partial=True)
        parent, traceparent = data.get("parent"), data.get("traceparent")
    is_trace = isinstance(traceparent, str) and traceparent.count("-") == 3
    return (
        parent if isinstance(parent, str) else None,
        traceparent.split("-")[1] if is_trace and isinstance(traceparent, str) else None,
    )


def _decoded(raw: bytes) -> Any:
    try:
        return from_json(raw)
    except ValueError:
        return raw.decode(errors="replace")


def _unescaped(raw: bytes) -> str:
    try:
        return str(from_json(b'"%b"' % raw))
    except ValueError:
        return raw.decode(errors="replace")


def _ended_by(kept: Mapping[str, Any], job_id: str) -> EndedJob:
    """The end of a job, as its kept result has it."""
    failed = "aborted" if "aborted" in kept else "failed"
    error = kept["r"] if isinstance(kept["r"], dict) else {}
    text = f"{error.get('type', '')}: {error.get('message', '')}".partition("\n")[0] if error and not kept["s"] else ""
    outcome = "completed" if kept["s"] else failed
    return EndedJob(job_id, str(kept["f"]), outcome, kept["et"], kept["st"], kept["ft"], kept["t"], text)


def _enqueued_at(tail: bytes) -> int | None:
    found = _ENQUEUED_AT.search(tail)
    return None if found is None else int(found[1])


def _row_place(after: str) -> Place:
    match from_json(after):
        case [int() as finished_at, str() as job_id, int() as enqueued_at]:
            return Place(finished_at, job_id, enqueued_at)
    raise ValueError("this is no place in the list")


def _queue_place(after: str) -> tuple[str, float, str]:
    match from_json(after):
        case [str() as queue, float() | int() as score, str() as job_id]:
            return queue, float(score), job_id
    raise ValueError("this is no place in the list")


def _queue_cursor(job: QueuedJob) -> str:
    return to_json([job.queue, job.score, job.id]).decode()

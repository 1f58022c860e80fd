"""``JobDetails``: find all that Redis and the ledger know of one job."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from pydantic_core import from_json

from worker.admin.deployment import Deployment
from worker.admin.job_detail import Attempt, JobDetail
from worker.admin.job_line import JobLine
from worker.admin.job_lines import JobLines, enqueue_time_in
from worker.admin.job_state import ARGUMENTS_DROPPED, JobState, state_of_pending
from worker.admin.running_jobs import Holder, holders
from worker.broker.job_inspector import JobInspector
from worker.broker.progress import ProgressRecord, ProgressRecords
from worker.broker.queue_pages import QueuedJob, QueuePages
from worker.broker.records import to_ms
from worker.ledger import State
from worker.ledger.admin import earlier_ends
from worker.ledger.search import FoundRow, JobSearch
from worker.metrics.reader import MetricsReader
from worker.metrics.records import EndedJob

_RESULT = frozenset({"t", "f", "et", "s", "r", "st", "ft"})  # what a kept result has: see worker/message.py


class _Live(NamedTuple):
    """A job that Redis has."""

    job: QueuedJob
    payload: bytes | None
    enqueued_at: int | None
    now: int


class JobDetails:
    """The jobs of a deployment, one by one.

    Args:
        lines: writes the lines of other jobs, and redacts.
    """

    def __init__(self, deployment: Deployment, lines: JobLines) -> None:
        self._deployment = deployment
        self._lines = lines
        self._queues = QueuePages(deployment.broker.connections)
        self._metrics = MetricsReader(deployment.broker)
        self._search = None if deployment.ledger is None else JobSearch(deployment.ledger.name)

    async def detail(self, job_id: str, enqueued_at: int | None = None) -> JobDetail | None:
        """A job: the one that was enqueued at this time, or the last one of this id. None if there is none."""
        rows = [] if self._search is None else await self._search.all_of(job_id)
        live = await self._live(job_id, rows)
        if live is not None and (enqueued_at is None or live.enqueued_at in (enqueued_at, None)):
            row = next((row for row in rows if row["enqueued_at"] == live.enqueued_at), None)
            detail = self._live_detail(live, row, rows, (await holders(self._deployment, self._metrics)).get(job_id))
            attempts = (*await self._put_back(detail), *detail.attempts)
            return replace(detail, progress=await self._progress_of(detail), attempts=attempts)
        row = next((row for row in rows if enqueued_at in (None, row["enqueued_at"])), None)
        return await self._without_row(job_id, enqueued_at) if row is None else self._row_detail(row, rows)

    async def _put_back(self, job: JobDetail) -> list[Attempt]:
        """The last attempt of a job that waits for its next one, as the worker noted it that put the job back."""
        if job.state is JobState.RUNNING:
            return []
        seen = await JobInspector(self._deployment.broker.connections).inspect(job.queue, job.id)
        if (note := seen.put_back) is None:
            return []
        error = self._lines.redact(job.task, "error", f"{note.error}: {note.why}")
        return [Attempt(seen.tries or None, "put back", note.worker, None, seen.put_back_at, error)]

    async def _progress_of(self, job: JobDetail) -> ProgressRecord | None:
        if job.state is not JobState.RUNNING:
            return None
        record = await ProgressRecords(self._deployment.broker.connections).read(job.queue, job.id)
        return record if record is not None and job.enqueued_at in (None, record.enqueued_at) else None

    async def _live(self, job_id: str, rows: Sequence[Mapping[str, Any]]) -> "_Live | None":
        queues = dict.fromkeys([*self._deployment.queues, *(row["queue"] for row in rows)])
        found = await self._queues.find([*queues], job_id)
        if not found:
            return None
        (payload,) = await self._queues.payloads(found[0].queue, [job_id])
        return _Live(found[0], payload, enqueue_time_in(found[0].tail), await self._queues.now())

    async def _without_row(self, job_id: str, enqueued_at: int | None) -> JobDetail | None:
        """An ended job that has no row, from the list of the latest ones, and from its result if that is kept.

        The list is written once a second, so the result alone tells of a job that has just ended.
        """
        for queue in self._deployment.queues:
            for job in await self._metrics.latest(queue):
                if job.id == job_id and enqueued_at in (None, job.enqueued_at):
                    kept = await self._kept_result(queue, job_id, job.enqueued_at)
                    return self._ended_detail(self._lines.of_ended(queue, job), job, kept)
        for queue in self._deployment.queues:
            kept = await self._kept_result(queue, job_id, enqueued_at)
            if kept:
                job = _ended_by(kept, job_id)
                return self._ended_detail(self._lines.of_ended(queue, job), job, kept)
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
            arguments, problem = self._lines.redact(line.task, "arguments", value), ""
        has_result = kept.get("s") is True
        return JobDetail(
            line.id,
            line.enqueued_at,
            line.task,
            line.queue,
            line.state,
            arguments,
            problem,
            result=self._lines.redact(line.task, "result", kept.get("r")) if has_result else None,
            has_result=has_result,
            error=line.error,
            tries=job.attempt,
            started_at=job.started_at,
            finished_at=job.finished_at,
            attempts=(Attempt(job.attempt, line.state, job.worker, job.started_at, job.finished_at, line.error),),
        )

    def _live_detail(
        self,
        live: _Live,
        row: Mapping[str, Any] | None,
        rows: Sequence[Mapping[str, Any]],
        holder: Holder | None,
    ) -> JobDetail:
        line = self._lines.of_queued(live.job, live.now)
        payload = live.payload or (None if row is None else row["payload"])
        task = line.task or ("" if row is None else row["task"])
        arguments, problem = self._lines.arguments(task, payload)
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
        arguments, problem = self._lines.arguments(task, row["payload"])
        if row["payload"] is None and state is State.DONE:
            problem = ARGUMENTS_DROPPED
        origin = _origin(row, row["payload"])
        has_result = state is State.DONE and row["result"] is not None
        return JobDetail(
            row["id"],
            row["enqueued_at"],
            task,
            row["queue"],
            state_of_pending(row["due"] or 0) if state is State.PENDING else JobState(state),
            arguments,
            problem,
            result=self._lines.redact(task, "result", _decoded(row["result"])) if has_result else None,
            has_result=has_result,
            error=None if row["error"] is None else self._lines.redact(task, "error", row["error"]),
            traceback=None if row["traceback"] is None else self._lines.redact(task, "traceback", row["traceback"]),
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
                error=self._lines.redact(row["task"], "error", end["error"]) if end["error"] else None,
                note="then retried by hand",
            )
            for end in earlier_ends(row)
        ]
        if row["state"] != State.PENDING:
            error = None if row["error"] is None else self._lines.redact(row["task"], "error", row["error"])
            attempts.append(Attempt(row["tries"], row["state"], None, row["started_at"], row["finished_at"], error))
        return tuple(reversed(attempts))

    def _others(self, rows: Sequence[Mapping[str, Any]], enqueued_at: int | None) -> tuple[JobLine, ...]:
        return tuple(
            self._lines.of_row(FoundRow(*(row[name] for name in FoundRow._fields)))
            for row in rows
            if row["enqueued_at"] != enqueued_at
        )


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


def _ended_by(kept: Mapping[str, Any], job_id: str) -> EndedJob:
    """The end of a job, as its kept result has it."""
    failed = "aborted" if "aborted" in kept else "failed"
    error = kept["r"] if isinstance(kept["r"], dict) else {}
    text = f"{error.get('type', '')}: {error.get('message', '')}".partition("\n")[0] if error and not kept["s"] else ""
    outcome = "completed" if kept["s"] else failed
    return EndedJob(job_id, str(kept["f"]), outcome, kept["et"], kept["st"], kept["ft"], kept["t"], text)

"""``JobLines``: write a job as a line of a list, from its row, its place in a queue, or the record of its end.

`Redact` sees each value before it is shown or searched. So a search finds nothing that is masked.
"""

import re
from collections.abc import Callable
from typing import Any

from pydantic_core import from_json

from worker.admin.job_line import JobLine
from worker.admin.job_state import JobState, state_in_queue, state_of_pending
from worker.broker.queue_pages import QueuedJob
from worker.errors import PayloadError
from worker.foreign_codec import PICKLE_MAGIC
from worker.ledger import State
from worker.ledger.search import FoundRow
from worker.message import Message
from worker.metrics.records import EndedJob

_DONE_OUTCOMES = ("completed", "duplicate")
_TASK = re.compile(rb'"f":"((?:[^"\\]|\\.)*)"')
_ENQUEUED_AT = re.compile(rb'"et":(\d+)(?:,"ledger":true)?}\s*$')

Redact = Callable[[str, Any, Any], Any]
"""Gets the task, the part of the job and its value; returns the value to show."""


class JobLines:
    """Writes lines.

    Args:
        redact: masks secrets in what is shown and searched.
    """

    def __init__(self, redact: Redact) -> None:
        self.redact = redact

    def of_row(self, row: FoundRow) -> JobLine:
        """A job of the ledger."""
        state = State(row.state)
        due = row.due or 0
        shown = JobState(state) if state is not State.PENDING else state_of_pending(due)
        return JobLine(
            row.id,
            row.enqueued_at,
            row.task,
            row.queue,
            shown,
            self.beginning(row.task, row.payload),
            row.tries,
            row.due,
            row.started_at,
            row.finished_at,
            None if row.error is None else self.redact(row.task, "error", row.error),
            is_published=state is not State.PENDING,
        )

    def of_queued(self, job: QueuedJob, now: int) -> JobLine:
        """A job that Redis has."""
        head = _TASK.search(job.head)
        task = _unescaped(head[1]) if head else ""
        state = state_in_queue(job, now)
        return JobLine(
            job.id,
            enqueue_time_in(job.tail),
            task,
            job.queue,
            state,
            self.beginning(task, job.head),
            job.tries,
            None if state is JobState.RUNNING else int(job.score),
        )

    def of_ended(self, queue: str, job: EndedJob) -> JobLine:
        """A job that has ended and has no row."""
        state = JobState.DONE if job.outcome in _DONE_OUTCOMES else JobState(job.outcome)
        error = self.redact(job.task, "error", job.error) if job.error else None
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

    def arguments(self, task: str, payload: bytes | None) -> tuple[Any, str]:
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
        return self.redact(task, "arguments", value), ""

    def beginning(self, task: str, head: bytes | None) -> Any:
        """The arguments at the beginning of a payload, redacted. A value that is cut off is left out."""
        if not head or head[:1] != b"{":
            return None
        try:
            data = from_json(head, allow_partial=True)
        except ValueError:
            return None
        value = {"args": data.get("a") or [], "kwargs": data.get("k") or {}}
        return self.redact(task, "arguments", value)


def enqueue_time_in(tail: bytes) -> int | None:
    """The enqueue time at the end of a payload."""
    found = _ENQUEUED_AT.search(tail)
    return None if found is None else int(found[1])


def _unescaped(raw: bytes) -> str:
    try:
        return str(from_json(b'"%b"' % raw))
    except ValueError:
        return raw.decode(errors="replace")

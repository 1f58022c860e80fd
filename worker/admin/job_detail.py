"""``JobDetail``: all that is known of one job."""

from dataclasses import dataclass, field
from typing import Any

from worker.admin.job_line import JobLine
from worker.admin.job_state import JobState
from worker.broker.progress import ProgressRecord


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

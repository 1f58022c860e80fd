"""``Reason``: why a job does not run, or how it ended."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class ReasonKind(StrEnum):
    """The kind of a reason. The list is closed."""

    SCHEDULED = "scheduled"
    """Its due time is in the future."""
    BEHIND = "behind"
    """Other due jobs of its queue come first, or it is the next one."""
    PAUSED = "paused"
    """Its queue is paused, or drained and the job became due later."""
    NO_WORKER = "no_worker"
    """No worker serves its queue, or none of them claims jobs: they are quiet, draining or unwell."""
    UNKNOWN_TASK = "unknown_task"
    """Workers serve its queue, and none of them knows its task."""
    SLOTS_TAKEN = "slots_taken"
    """All slots of the workers of its queue are taken."""
    PUT_BACK = "put_back"
    """A worker has put it back, to run it again later."""
    WORKER_DIED = "worker_died"
    """Its lease is not renewed. It runs again once the lease has ended."""
    NOT_PUBLISHED = "not_published"
    """Its row is committed, and the job is not in Redis yet."""
    SUSPECT = "suspect"
    """Workers have died while they ran it. Such jobs run one at a time."""
    EXPIRED = "expired"
    ABORTED = "aborted"
    """It was aborted, or an abort was requested."""
    DISCARDED = "discarded"
    DONE = "done"
    FAILED = "failed"
    RUNNING = "running"
    UNKNOWN = "unknown"
    """Neither Redis nor the ledger has a job of this id."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a job does not run, or how it ended."""

    kind: ReasonKind
    sentence: str
    """One sentence for people, without the job's id: "its queue mail is paused since 12:00:00 UTC, by ann"."""
    next_step: str
    """What to do or to type. Empty if there is nothing to do."""
    job_id: str
    queue: str | None = None
    task: str | None = None
    enqueued_at: datetime | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """What the sentence was read from, as JSON values by name. Times are datetimes in UTC."""

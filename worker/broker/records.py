"""What Redis is told of jobs, and what it tells: the arguments and answers of `worker.broker.broker.Broker`."""

import time
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

ABORTED = b'{"aborted":'
"""How the result of an aborted job begins; its enqueue time follows. The scripts look for it."""

_WARY = 2  # crashes, as in scripts/claim.lua


class JobStatus(StrEnum):
    """Where a job is, as arq spells it."""

    deferred = "deferred"
    queued = "queued"
    in_progress = "in_progress"
    complete = "complete"
    not_found = "not_found"


class JobSnapshot(NamedTuple):
    """What Redis knows of one job."""

    payload: bytes | None
    result: bytes | None
    in_progress: bool
    due: float | None
    """Its score in the queue, in milliseconds since the epoch; None where it is not queued."""
    now: float
    """Redis' clock, likewise."""
    set_aside: bytes | None = None
    """The result of the job that was asked for, where it was aborted and its id is used again."""

    @property
    def holds_id(self) -> bool:
        """Whether a new job cannot have the id. The result of an aborted one does not keep it."""
        is_kept = self.result is not None and not self.result.startswith(ABORTED)
        return is_kept or self.in_progress or self.due is not None

    @property
    def status(self) -> JobStatus:
        if self.result is not None:
            return JobStatus.complete
        if self.in_progress:
            return JobStatus.in_progress
        if self.due is None:
            return JobStatus.not_found
        return JobStatus.deferred if self.due > self.now else JobStatus.queued


class Claim(NamedTuple):
    """One job that this worker holds now."""

    raw_id: bytes
    """Its id as it is in Redis: whoever put it there need not have heard of UTF-8."""
    payload: bytes | None
    """None: the job has expired, or was never there, or is too large to be read."""
    score: bytes
    """When it was due, in milliseconds since the epoch, as Redis writes it."""
    tries: int
    """Attempts that failed."""
    crashes: int
    """Claims that nobody finished."""
    abort_at: float | None
    """When it was asked to abort, in milliseconds since the epoch."""
    unread: int = 0
    """Bytes of a payload that is too large to be read; 0 of any other."""

    @property
    def is_suspect(self) -> bool:
        """Whether its workers have died so often that it may be what kills them: see ``scripts/claim.lua``."""
        return self.crashes >= _WARY


class Claims(NamedTuple):
    """What one claim brought."""

    jobs: list[Claim]
    next_due: float | None
    """Seconds until the queue has something due; None where it is empty."""


class Completion(NamedTuple):
    """What became of one held job, for Redis."""

    raw_id: bytes
    token: str
    action: str
    """``end``, ``again``, ``back`` or ``later``: see ``scripts/finish.lua``."""
    value: bytes = b""
    """The result, empty for none; for all but ``end`` the payload, in case that Redis has lost it."""
    keep: int = 0
    """Milliseconds to keep the result."""
    delay: int = 0
    """Milliseconds until it is due again."""


class CronSlot(NamedTuple):
    """One time at which a scheduled task is to run."""

    task: str
    moment: int
    """Milliseconds since the epoch."""
    job_id: str
    payload: bytes
    """Empty: only take note that the slot has passed."""


def now_ms() -> int:
    """This machine's clock, in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def to_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)

"""The arguments and replies of `worker.broker.broker.Broker`'s commands."""

import time
from datetime import datetime
from enum import Enum, StrEnum
from typing import NamedTuple

ABORTED = b'{"aborted":'
"""The beginning of an aborted job's result. The enqueue time follows. The scripts look for it."""

_SUSPECT_CRASHES = 2  # SUSPECT_CRASHES of scripts/claim.lua


class JobStatus(StrEnum):
    """The status of a job, as arq spells it.

    ::

        if await job.status() is JobStatus.complete:
            print(await job.result())
    """

    deferred = "deferred"
    queued = "queued"
    in_progress = "in_progress"
    complete = "complete"
    not_found = "not_found"


class RunNow(Enum):
    """What came of making a job due now."""

    NO_JOB = 0
    """No such job waits or runs."""
    DUE = 1
    WAS_DUE = 2
    """It was due already."""
    RUNS = 3
    """A worker runs it."""


class JobSnapshot(NamedTuple):
    """The state of one job in Redis."""

    payload: bytes | None
    result: bytes | None
    in_progress: bool
    due: float | None
    """The job's score in the queue, in milliseconds since the epoch. None if the job is not queued."""
    now: float
    """The time on the Redis server, in milliseconds since the epoch."""
    set_aside: bytes | None = None
    """The result of the requested job, if it was aborted and its id is used again."""

    @property
    def holds_id(self) -> bool:
        """Whether the id is taken for new jobs. The result of an aborted job does not take it."""
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
    """A job that this worker holds."""

    raw_id: bytes
    """The id as Redis has it. Other producers may write ids that are not UTF-8."""
    payload: bytes | None
    """None if the job has expired, never had a payload, or has one that is too large."""
    score: bytes
    """The due time in milliseconds since the epoch, as Redis writes it."""
    tries: int
    """The number of failed tries."""
    crashes: int
    """The number of claims that were never finished."""
    abort_at: float | None
    """The time at which an abort was requested, in milliseconds since the epoch."""
    unread: int = 0
    """The size in bytes of a payload that was too large to be read, else 0."""
    expires_in: int = 0
    """Milliseconds until the payload expires although the job has begun: a stock producer set `_expires`. 0: never."""

    @property
    def payload_to_restore(self) -> bytes:
        """The payload, in case Redis loses it. Empty if there is none, or if it may have expired."""
        return b"" if self.payload is None or self.expires_in else self.payload

    @property
    def is_suspect(self) -> bool:
        """Whether so many workers died while they ran the job that it may be the cause. See ``scripts/claim.lua``."""
        return self.crashes >= _SUSPECT_CRASHES


class Claims(NamedTuple):
    """The jobs of one claim."""

    jobs: list[Claim]
    next_due: float | None
    """Seconds until the next job of the queue is due. None if the queue is empty."""


class QueueClaims(NamedTuple):
    """The jobs that one claim has taken from several queues."""

    jobs: dict[str, list[Claim]]
    """By queue, in the order in which the queues were given. A queue of which no job was taken is missing."""
    next_due: float | None
    """Seconds until the next job of any of the queues is due. None if all are empty."""
    refused: str | None = None
    """The error of a queue that could not be claimed from."""


class Completion(NamedTuple):
    """The end of an attempt at a held job, for Redis."""

    raw_id: bytes
    token: str
    action: str
    """``end``, ``again``, ``back`` or ``later``: see ``scripts/finish.lua``."""
    value: bytes = b""
    """For ``end`` the result, or nothing. Otherwise the payload, in case Redis has lost it."""
    keep: int | str = 0
    """For ``end`` the milliseconds for which the result is kept. For ``again`` and ``later`` the number of failed
    tries, and after a space a `PutBack` as JSON."""
    delay: int = 0
    """Milliseconds until the job is due again."""


class PutBack(NamedTuple):
    """A note on why a job was put back."""

    worker: str
    """The id of the worker that has put it back."""
    error: str
    """The type of the error."""
    why: str
    """The error in one line."""


class CronSlot(NamedTuple):
    """One time at which a scheduled task is due."""

    task: str
    moment: int
    """Milliseconds since the epoch."""
    job_id: str
    payload: bytes
    """If empty, the slot is only recorded as passed."""
    if_free: int = 0
    """1 to add the job only if no job waits or runs under its id, which other slots share; else 0."""

    @property
    def series(self) -> str:
        """The name under which the last slot is recorded."""
        return series_name(self.task, self.job_id if self.if_free else None)


def series_name(task: str, job_id: str | None) -> str:
    """The name of a task's cron slots, or of those whose jobs share an id."""
    return task if job_id is None else f"{task} {job_id}"


def now_ms() -> int:
    """This machine's clock, in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def to_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)

"""What workers write down about jobs and about themselves, as JSON in Redis."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from db.database import PoolUsage
from worker.broker.metrics import Report
from worker.context import from_milliseconds

SILENT_AFTER = 5.0
"""Seconds without a new record after which a worker counts as silent: it has died, or its event loop is blocked."""


HEALTHY_FOR = 4.0
"""Seconds for which a worker counts as healthy after it has found that it can run jobs: a short failure is none."""
_ABLE = ("working", "quiet", "draining")


class WorkerState(StrEnum):
    """What a worker does."""

    STARTING = "starting"
    """It has not asked for jobs yet."""
    WORKING = "working"
    QUIET = "quiet"
    """It claims nothing more, until it is told to."""
    DRAINING = "draining"
    """It ends as soon as its jobs have."""
    UNWELL = "unwell"
    """It cannot run jobs, or says nothing any more."""


@dataclass(frozen=True, slots=True)
class RunningJob:
    """A job that a worker runs."""

    id: str
    task: str
    queue: str
    attempt: int
    since: datetime


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """A worker, as it has described itself. Fields that its version does not tell have their defaults."""

    id: str
    """``WORKER_ID``, which several processes may have."""
    process: str
    """The id of this process, which no other one has."""
    state: WorkerState
    why: str = ""
    """Why it is unwell."""
    queues: tuple[str, ...] = ()
    host: str = ""
    pid: int = 0
    version: str = ""
    started_at: datetime | None = None
    age: float = 0.0
    """Seconds since it was heard of."""
    slots: int = 0
    busy: int = 0
    """Slots that jobs hold."""
    jobs: tuple[RunningJob, ...] = ()
    """The running jobs, the longest first."""
    pool: PoolUsage | None = None
    """Of the default database. None if the project has made the pool."""
    last_healthy: float | None = None
    """Seconds since it had last found that it can run jobs, when it wrote this. None: never yet."""
    last_heartbeat: float = 0.0
    """Seconds since it had last renewed its leases, when it wrote this."""
    loop_lag: float = 0.0
    """Seconds that the event loop took to answer."""
    memory: int = 0
    """Resident bytes."""
    done: int = 0
    failed: int = 0
    retried: int = 0
    metrics_port: int | None = None

    @property
    def is_healthy(self) -> bool:
        """Whether it has shown within the last `HEALTHY_FOR` seconds that it can run jobs."""
        return self.last_healthy is not None and self.last_healthy + self.age < HEALTHY_FOR

    @property
    def is_silent(self) -> bool:
        return self.age > SILENT_AFTER


class EndedJob(NamedTuple):
    """A job that has ended and has no job row. Its result may be in Redis, while it is kept."""

    id: str
    task: str
    outcome: str
    """See `worker.metrics.counts.FINAL_OUTCOMES`."""
    enqueued_at: int
    """Milliseconds since the epoch, as are the other times."""
    started_at: int
    finished_at: int
    attempt: int
    error: str
    """The type and the first line of the error, or an empty text."""
    worker: str = ""


def encode_ended(worker: str, jobs: Sequence[tuple[Any, ...]]) -> bytes:
    """Encode ended jobs, given as the fields of `EndedJob` up to `error`."""
    return to_json([worker, jobs])


def decode_ended(raw: bytes) -> list[EndedJob]:
    """Decode ended jobs. Empty if a later version has written them in another form."""
    try:
        worker, jobs = from_json(raw)
        return [EndedJob._make([*job[:8], worker]) for job in jobs]
    except (TypeError, ValueError):
        return []


def encode_report(fields: dict[str, Any], jobs: Iterable[Sequence[Any]]) -> bytes:
    """Encode a worker's record.

    Args:
        fields: the fields of `WorkerReport`, with times in milliseconds since the epoch.
        jobs: the fields of `RunningJob` for each running job of the queue.
    """
    return to_json(fields | {"jobs": list(jobs)})


def decode_reports(reports: Iterable[Report]) -> list[WorkerReport]:
    """Decode the records of workers, and join those that a worker has written for several queues."""
    by_process: dict[str, WorkerReport] = {}
    for report in reports:
        try:
            worker = _decode(report)
        except (KeyError, TypeError, ValueError):  # a later version has written it in another form
            continue
        other = by_process.get(report.process)
        if other is not None:
            newer = worker if worker.age <= other.age else other
            worker = replace(newer, jobs=_by_age({*worker.jobs, *other.jobs}))
        by_process[report.process] = worker
    return sorted(by_process.values(), key=lambda worker: (worker.id, worker.process))


def _decode(report: Report) -> WorkerReport:
    fields = from_json(report.record)
    known = {name: fields[name] for name in WorkerReport.__slots__ if name in fields}
    known |= {
        "process": report.process,
        "age": report.age,
        "state": WorkerState(fields["state"]),
        "queues": tuple(fields["queues"]),
        "started_at": from_milliseconds(fields["started_at"]),
        "pool": None if fields["pool"] is None else PoolUsage(**fields["pool"]),
        "jobs": _by_age(map(_running_job, fields["jobs"])),
    }
    if "last_healthy" not in fields and fields["state"] in _ABLE:  # a worker of an earlier version, during a deploy
        known["last_healthy"] = 0.0
    worker = WorkerReport(**known)
    if worker.is_silent:
        why = f"no report for {report.age:.0f} s: its process has died, or its event loop is blocked"
        worker = replace(worker, state=WorkerState.UNWELL, why=why)
    return worker


def _running_job(fields: Sequence[Any]) -> RunningJob:
    job_id, task, queue, attempt, since = fields[:5]
    return RunningJob(job_id, task, queue, attempt, from_milliseconds(since))


def _by_age(jobs: Iterable[RunningJob]) -> tuple[RunningJob, ...]:
    return tuple(sorted(jobs, key=lambda job: (job.since, job.id)))

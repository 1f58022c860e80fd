"""``JobState``: the state of a job, as people see it."""

import time
from enum import StrEnum

from worker.broker.queue_pages import QueuedJob


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


ARGUMENTS_DROPPED = "They were dropped when the job was done (WORKER_KEEP_ARGUMENTS)."

LIVE_STATES = (JobState.SCHEDULED, JobState.WAITING, JobState.RUNNING)


def state_in_queue(job: QueuedJob, now: int) -> JobState:
    """The state of a job that Redis has."""
    if job.in_progress:
        return JobState.RUNNING
    return JobState.SCHEDULED if job.score > now else JobState.WAITING


def state_of_pending(due: int) -> JobState:
    """The state of a pending row that Redis does not have."""
    return JobState.SCHEDULED if due > time.time() * 1000 else JobState.WAITING

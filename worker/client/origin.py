"""The origin of a new job: the job that enqueues it, and the trace that it is part of."""

from typing import NamedTuple

from worker.context import running_job
from worker.telemetry.tracing import active_tracing


class Origin(NamedTuple):
    """What enqueues a job. Both are None outside of jobs and traces."""

    parent: str | None = None
    """The id of the job that enqueues it."""
    traceparent: str | None = None
    """The trace and span that it is enqueued in, as W3C Trace Context writes them."""


_NONE = Origin()


def current_origin() -> Origin:
    """The origin of a job that the calling code enqueues."""
    job, tracing = running_job(), active_tracing()
    traceparent = None if tracing is None else tracing.traceparent()
    if job is None:
        return _NONE if traceparent is None else Origin(None, traceparent)
    # Other producers may write any bytes as an id. One that a text of the database cannot hold must not fail its child.
    return Origin(job.job_id if job.job_id.isprintable() else None, traceparent or job.traceparent)

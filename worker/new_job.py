"""``NewJob``: a job that is about to be enqueued, for the broker and the ledger."""

from typing import NamedTuple

A_DAY = 24 * 60 * 60 * 1000
"""Milliseconds that a job without `expires` may wait past its due time, outside a transaction. arq's default."""


class NewJob(NamedTuple):
    """A job that is about to be enqueued. Times are milliseconds."""

    id: str
    payload: bytes
    """The encoded job."""
    task: str
    queue: str
    enqueued_at: int
    """Since the epoch, by the producer's clock. The id and this time identify a job."""
    due: int | None = None
    """Since the epoch; None: after `delay`."""
    delay: int = 0
    """Counted from the moment when the broker takes the job, or the ledger writes its row."""
    expires: int | None = None
    """The time past the due time in which the job may still start; None: it does not expire."""
    parent: str | None = None
    """The id of the job that enqueues it."""
    traceparent: str | None = None
    """The trace and span that it is enqueued in."""


def slot_id(task: str, moment: object) -> str:
    """The id of the job of a cron slot, in milliseconds since the epoch."""
    return f"cron:{task}:{moment}"

"""``NewJob``: one job on its way in, as the broker and the ledger each write it."""

from typing import NamedTuple

A_DAY = 24 * 60 * 60 * 1000
"""Milliseconds that a job may wait past its due time where nothing else is said and no transaction holds it: arq's
default."""


class NewJob(NamedTuple):
    """A job that is to run. Times are milliseconds."""

    id: str
    payload: bytes
    """As it is on the wire."""
    task: str
    queue: str
    enqueued_at: int
    """Since the epoch, by the producer's clock. A job is known by its id and this."""
    due: int | None = None
    """Since the epoch; None: after `delay`."""
    delay: int = 0
    """From when the broker takes the job, or the ledger writes its row."""
    expires: int | None = None
    """How long past its due time it may still be started; None: it does not expire."""

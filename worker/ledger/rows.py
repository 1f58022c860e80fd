"""Job rows as Python tuples."""

from typing import NamedTuple

from worker.ledger.table import State


class RelayRow(NamedTuple):
    """A pending row, with all that the relay needs to publish it."""

    id: str
    enqueued_at: int
    task: str
    queue: str
    payload: bytes
    delay: int
    """Milliseconds until the job is due. Negative if it is overdue."""
    patience: int | None
    """Milliseconds after the due time for which the job may still be started. None if it does not expire."""
    expired: bool
    """Whether the job has expired."""


class FinalRow(NamedTuple):
    """A row that records how a job has ended."""

    id: str
    enqueued_at: int
    task: str
    queue: str
    state: State
    payload: bytes | None = None
    """The payload as on the wire. None if the job will not run again."""
    result: bytes | None = None
    """The result as JSON, or the error as data."""
    error: str | None = None
    """The error in one line."""
    traceback: str | None = None
    tries: int = 1
    """The number of attempts, this one included."""
    started_at: int | None = None
    """Milliseconds since the epoch."""

    @property
    def size(self) -> int:
        """The approximate number of bytes."""
        return sum(len(value) for value in (self.payload, self.result, self.error, self.traceback) if value)


class StoredResult(NamedTuple):
    """The state of a job in the ledger, and its result."""

    state: State
    result: bytes | None

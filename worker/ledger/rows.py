"""Job rows, as they are written and read."""

from typing import NamedTuple

from worker.ledger.table import State


class RelayRow(NamedTuple):
    """A pending row, as the relay publishes it."""

    id: str
    enqueued_at: int
    task: str
    queue: str
    payload: bytes
    delay: int
    """Milliseconds until it is due; negative: since it was."""
    patience: int | None
    """Milliseconds past its due time after which it is not started any more; None: it does not expire."""
    expired: bool
    """Whether it has waited longer than it may."""


class FinalRow(NamedTuple):
    """How a job has ended."""

    id: str
    enqueued_at: int
    task: str
    queue: str
    state: State
    payload: bytes | None = None
    """As it is on the wire; None where nobody will run it again."""
    result: bytes | None = None
    """The result as JSON, or the error as data."""
    error: str | None = None
    """In a line."""
    traceback: str | None = None
    tries: int = 1
    """Attempts, this one included."""
    started_at: int | None = None
    """Milliseconds since the epoch."""

    @property
    def size(self) -> int:
        """About how many bytes it is."""
        return sum(len(value) for value in (self.payload, self.result, self.error, self.traceback) if value)


class StoredResult(NamedTuple):
    """What the ledger knows of a job."""

    state: State
    result: bytes | None

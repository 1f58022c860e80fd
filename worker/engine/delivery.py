"""``Delivery``: one claimed job, as the executor gets it."""

from dataclasses import dataclass

from worker.engine.outcome import Kind
from worker.message import Message


@dataclass(slots=True)
class Delivery:
    """One claimed job."""

    message: Message
    queue: str
    tries: int = 0
    """Earlier attempts that failed."""
    crashes: int = 0
    """Earlier attempts whose worker did not end them."""
    started_at: int = 0
    """Milliseconds since the epoch."""
    score: int = 0
    """When it was due, in milliseconds since the epoch."""
    stop: Kind | None = None
    """What becomes of the job now that it is cancelled; whoever cancels it says so here first."""

"""``Delivery``: one claimed job, as the executor gets it."""

import time
from dataclasses import dataclass, field

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
    begun: float = field(default_factory=time.monotonic, init=False, compare=False, repr=False)
    """When its lease began to be kept for as long as one attempt may take, by the monotonic clock."""

    def keep_lease(self) -> None:
        """Keep the job's lease for as long again as one attempt may take.

        A job that the database asks to run again, or that waits for the database to come back, may take much longer
        than one attempt; its body, each time that it is called, may not.
        """
        self.begun = time.monotonic()

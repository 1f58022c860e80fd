"""``QueueAdmin``: list queues, and pause, resume, drain and purge them for the whole fleet."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from worker.admin.deployment import Deployment


class QueueState(StrEnum):
    """The state of a queue."""

    ACTIVE = "active"
    PAUSED = "paused"
    """No job of the queue starts."""
    DRAINING = "draining"
    """Jobs that were due when the queue was drained still start; others wait. Then the queue is paused."""


@dataclass(frozen=True, slots=True)
class Pause:
    """A pause of a queue or a schedule."""

    since: datetime
    actor: str
    until: datetime | None = None
    """The end of the pause. None: until somebody resumes it."""
    drains: bool = False
    """Whether jobs that were due at `since` still start."""
    is_durable: bool = True
    """Whether the pause is in the database, and so survives a Redis that loses everything."""


@dataclass(frozen=True, slots=True)
class QueueInfo:
    """A queue at this moment."""

    name: str
    depth: int
    """Jobs that wait or run."""
    due: int
    """Jobs that could start now."""
    later: int
    """Jobs that run, or are due in the future."""
    oldest_due: float | None
    """Seconds for which the first job has been due. None if no job is due."""
    workers: int
    """Workers with a health record."""
    tasks: frozenset[str]
    """The tasks that live workers of the queue know."""
    state: QueueState = QueueState.ACTIVE
    pause: Pause | None = None


@dataclass(frozen=True, slots=True)
class PurgeProgress:
    """How far a purge has come."""

    total: int
    """Jobs that waited when the purge began."""
    removed: int
    is_over: bool = False


class QueueAdmin:
    """The queues of a deployment.

    Args:
        deployment: where the queues are (default: the servers of this process).
    """

    def __init__(self, deployment: Deployment | None = None) -> None:
        self._deployment = deployment or Deployment.of_process()

    async def list(self) -> list[QueueInfo]:
        """All queues of the deployment, and those that are paused."""
        raise NotImplementedError

    async def get(self, name: str) -> QueueInfo:
        """One queue. An empty one if it does not exist."""
        raise NotImplementedError

    async def pause(self, name: str, *, actor: str, until: datetime | None = None) -> Pause:
        """Start no more jobs of a queue, on any worker, from the next claim on. Enqueueing and running jobs go on.

        Args:
            until: the time at which the queue goes on by itself (default: never).

        Raises:
            ValueError: `until` has no time zone, or is not in the future.
        """
        raise NotImplementedError

    async def drain(self, name: str, *, actor: str, until: datetime | None = None) -> Pause:
        """Start the jobs that are due now, and no later ones: pause the queue once it has worked off what is there.

        Raises:
            ValueError: as `pause`.
        """
        raise NotImplementedError

    async def resume(self, name: str, *, actor: str) -> bool:
        """End the pause of a queue. False if it was not paused."""
        raise NotImplementedError

    async def waiting(self, name: str) -> int:
        """The number of jobs that `purge` would remove now: those that wait in Redis or in the ledger."""
        raise NotImplementedError

    def purge(self, name: str, *, actor: str) -> AsyncIterator[PurgeProgress]:
        """Remove the jobs of a queue that wait, in batches. Their job rows become discarded. Running jobs go on.

        Jobs that are enqueued after the purge has begun stay. The purge ends early if the iteration does.
        """
        raise NotImplementedError

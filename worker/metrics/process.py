"""``ProcessSnapshot``: what a worker's own Prometheus metrics say, besides the counts of its jobs."""

from dataclasses import dataclass

from db.database import PoolUsage


@dataclass(frozen=True, slots=True)
class ProcessSnapshot:
    """The state of a worker's process at one moment, and what it has counted since its start."""

    slots: int
    busy: int
    """Slots that jobs hold."""
    loop_lag: float
    """Seconds that the event loop took to answer, or has not answered for."""
    pool: PoolUsage | None
    crashes: int
    leases_lost: int
    conflict_reruns: int
    relay_published: int

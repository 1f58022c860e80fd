"""``LeaseClient``: the heartbeat's own connection to Redis.

The heartbeat runs in a thread, so that a blocked event loop loses no lease.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

from redis.exceptions import ReadOnlyError

from worker.broker.connection import close_sync, connect_sync, drop_connections_sync
from worker.broker.keys import Keys
from worker.broker.scripts import Script


class HeldLease(NamedTuple):
    """A job that this worker holds."""

    raw_id: bytes
    token: str
    score: bytes
    payload: bytes | None


class LeaseOwner(Enum):
    """The owner of a job's lease, according to Redis."""

    OURS = 1
    NOBODYS = 0
    ANOTHERS = -1


class LeaseClient:
    """Renew leases, reacquire lost leases, and read requests to abort jobs.

    Args:
        lease: the length of a lease in milliseconds.
    """

    def __init__(self, url: str, queue: str, lease: int) -> None:
        # After a third of the lease it is better to reconnect: a new connection may still renew the leases in time.
        self._redis = connect_sync(url, longest_wait=lease / 3000)
        self._queue = queue
        self._prefix = Keys.of(queue).prefix
        self._lease = lease

    def renew(self, jobs: Sequence[HeldLease]) -> list[tuple[LeaseOwner, float | None]]:
        """Renew the leases of these jobs.

        Returns:
            For each job its lease's owner, and the time at which an abort was requested (milliseconds since the epoch),
            or None.
        """
        arguments: list[Any] = [self._prefix, self._lease]
        for job in jobs:
            arguments += (job.raw_id, job.token)
        replies = self._run("renew", arguments)
        return [
            (LeaseOwner(state), None if abort_at is None else float(abort_at))
            for state, abort_at in zip(replies[::2], replies[1::2], strict=True)
        ]

    def reacquire(self, jobs: Sequence[HeldLease]) -> list[bool]:
        """Take leases again that have ended or were lost.

        Returns:
            For each job, whether this worker holds it again.
        """
        arguments: list[Any] = [self._prefix, self._lease]
        for job in jobs:
            arguments += (job.raw_id, job.token, job.score, job.payload or b"")
        return [bool(reply) for reply in self._run("reacquire", arguments)]

    def close(self) -> None:
        close_sync(self._redis)

    def _run(self, script: str, arguments: Sequence[Any]) -> Any:
        try:
            return Script.named(script).run_sync(self._redis, self._queue, arguments)
        except ReadOnlyError:
            drop_connections_sync(self._redis)
            raise

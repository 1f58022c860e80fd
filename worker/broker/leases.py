"""``LeaseClient``: the heartbeat's own line to Redis, for its thread: a blocked event loop must lose no lease."""

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

from redis.exceptions import ReadOnlyError

from worker.broker.connection import close_sync, connect_sync, drop_connections_sync
from worker.broker.keys import Keys
from worker.broker.scripts import Script


class HeldLease(NamedTuple):
    """One job that this worker holds."""

    raw_id: bytes
    token: str
    score: bytes
    payload: bytes | None


class LeaseOwner(Enum):
    """Who holds a job, as Redis has it."""

    OURS = 1
    NOBODYS = 0
    ANOTHERS = -1


class LeaseClient:
    """Renews leases, takes lost ones again, and hears of aborts.

    Args:
        lease: milliseconds that a lease holds.
    """

    def __init__(self, url: str, queue: str, lease: int) -> None:
        # A reply that takes longer than this is not worth waiting for: a new connection may still save the leases.
        self._redis = connect_sync(url, longest_wait=lease / 3000)
        self._queue = queue
        self._prefix = Keys.of(queue).prefix
        self._lease = lease

    def renew(self, jobs: Sequence[HeldLease]) -> list[tuple[LeaseOwner, float | None]]:
        """Who holds each job now, and when it was asked to abort (milliseconds since the epoch)."""
        arguments: list[Any] = [self._prefix, self._lease]
        for job in jobs:
            arguments += (job.raw_id, job.token)
        replies = self._run("renew", arguments)
        return [
            (LeaseOwner(state), None if abort_at is None else float(abort_at))
            for state, abort_at in zip(replies[::2], replies[1::2], strict=True)
        ]

    def reacquire(self, jobs: Sequence[HeldLease]) -> list[bool]:
        """Take leases that nobody holds; tells of each whether it is ours again."""
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

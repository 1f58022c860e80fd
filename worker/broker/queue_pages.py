"""``QueuePages``: reading waiting and running jobs of a queue for people, a page at a time.

Only ranges of the queue are read, never the whole queue, and only the beginnings of payloads.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from worker.broker.connections import Connections
from worker.broker.keys import Keys

_HEAD = 600  # bytes of a payload that a line in a list needs
_TAIL = 48  # bytes at its end, which hold its enqueue time: see worker/message.py
_LONGEST_LEASE = 3_600_000  # milliseconds: a running job's score is the end of its lease, at most so far ahead


class QueuedJob(NamedTuple):
    """A job that waits or runs."""

    id: str
    queue: str
    score: float
    """When it is due, in milliseconds since the epoch. For a running job the end of its lease."""
    head: bytes
    """The beginning of its payload. Empty if the payload is lost."""
    tail: bytes
    in_progress: bool
    tries: int
    """Failed tries."""


class QueueCount(NamedTuple):
    """The number of jobs of a queue."""

    due: int
    later: int
    """Jobs that run, or are due in the future."""
    first_due: float | None
    """The due time of the first one, in milliseconds since the epoch."""


class QueuePages:
    """Reads the queues of one Redis."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def now(self) -> int:
        """The time on the Redis server, in milliseconds since the epoch."""
        seconds, microseconds = await self._connections.client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    async def count(self, queues: Sequence[str], now: int) -> dict[str, QueueCount]:
        """The numbers of jobs of each queue, in one round trip."""
        async with self._connections.client.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.zcount(queue, "-inf", now)
                pipe.zcard(queue)
                pipe.zrange(queue, 0, 0, withscores=True)
            replies = await pipe.execute()
        counts = {}
        for position, queue in enumerate(queues):
            due, depth, first = replies[3 * position : 3 * position + 3]
            counts[queue] = QueueCount(due, depth - due, first[0][1] if first and due else None)
        return counts

    async def scan(self, queue: str, after: tuple[float, str] | None, since: float, limit: int) -> list[QueuedJob]:
        """Up to `limit` jobs in the order of their scores, after a place, and not before the score `since`."""
        redis, start = self._connections.client, 0
        if after is not None:
            rank = await redis.zrank(queue, after[1])
            start = await redis.zcount(queue, "-inf", f"({after[0]!r}") if rank is None else rank + 1
        elif since > 0:
            start = await redis.zcount(queue, "-inf", f"({since!r}")
        return await self._described(queue, await redis.zrange(queue, start, start + limit - 1, withscores=True))

    async def running(self, queue: str, now: int, limit: int) -> list[QueuedJob]:
        """Up to `limit` jobs that run, among those whose scores may be ends of leases."""
        members = await self._connections.client.zrangebyscore(
            queue, now - 1000, now + _LONGEST_LEASE, start=0, num=limit, withscores=True
        )
        return [job for job in await self._described(queue, members) if job.in_progress]

    async def find(self, queues: Sequence[str], job_id: str) -> list[QueuedJob]:
        """The job of this id in each queue that has it."""
        async with self._connections.client.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.zscore(queue, job_id)
            scores = await pipe.execute()
        found = []
        for queue, score in zip(queues, scores, strict=True):
            if score is not None:
                found += await self._described(queue, [(job_id.encode(errors="surrogateescape"), score)])
        return found

    async def payloads(self, queue: str, job_ids: Sequence[str]) -> list[bytes | None]:
        """The whole payloads of jobs. None for one that is lost."""
        if not job_ids:
            return []
        keys = Keys.of(queue)
        payloads: list[bytes | None] = await self._connections.client.mget([keys.job(job_id) for job_id in job_ids])
        return payloads

    async def _described(self, queue: str, members: Sequence[tuple[bytes, float]]) -> list[QueuedJob]:
        keys = Keys.of(queue)
        async with self._connections.client.pipeline(transaction=False) as pipe:
            for raw_id, _ in members:
                job, retry = f"{keys.prefix}job:".encode() + raw_id, f"{keys.prefix}retry:".encode() + raw_id
                pipe.getrange(job, 0, _HEAD - 1)
                pipe.getrange(job, -_TAIL, -1)
                pipe.get(f"{keys.prefix}in-progress:".encode() + raw_id)
                pipe.get(retry)
            # Other software may have left something else in a job's keys.
            replies: list[Any] = [
                None if isinstance(reply, Exception) else reply for reply in await pipe.execute(raise_on_error=False)
            ]
        return [
            QueuedJob(
                raw_id.decode(errors="replace"),
                queue,
                float(score),
                replies[4 * nth] or b"",
                replies[4 * nth + 1] or b"",
                replies[4 * nth + 2] not in (None, b"ended"),  # or a tombstone: see finish.lua
                _number(replies[4 * nth + 3]),
            )
            for nth, (raw_id, score) in enumerate(members)
        ]


def _number(reply: bytes | None) -> int:
    return int(reply) if reply is not None and reply.isdigit() else 0

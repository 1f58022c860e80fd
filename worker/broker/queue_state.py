"""``QueueInspector``: the state of a queue, and the removal of jobs that wait."""

from collections.abc import Sequence
from typing import NamedTuple

from worker.broker.connections import Connections
from worker.broker.keys import Keys
from worker.broker.pauses import QueuePause


class QueueSnapshot(NamedTuple):
    """The state of a queue at one moment."""

    now: int
    """The time on the Redis server, in milliseconds since the epoch."""
    depth: int
    """Jobs that wait or run."""
    due: int
    """Jobs that could start now."""
    oldest_due: float | None
    """Seconds for which the first job has been due. None if no job is due."""
    pause: QueuePause | None
    startable: int
    """Due jobs that start although the queue is paused, as it is drained. All due jobs if it is not paused."""
    tasks: frozenset[str]
    """The tasks that live workers know."""


class QueueInspector:
    """Looks at the queues of one Redis, and removes jobs."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def snapshot(self, queue: str) -> QueueSnapshot:
        """Read the state of a queue, in one round trip."""
        now, depth, due, first, copy, startable, tasks = await self._connections.run("queue_state", queue, [])
        return QueueSnapshot(
            now=now,
            depth=depth,
            due=due,
            oldest_due=None if first is None else max(now - float(first), 0.0) / 1000,
            pause=None if copy is None else QueuePause.decode(copy),
            startable=startable,
            tasks=frozenset(task.decode(errors="replace") for task in tasks),
        )

    async def now(self, queue: str) -> int:
        """The time on the server that holds `queue`, in milliseconds since the epoch."""
        return int(await self._connections.run("clock", queue, [])) // 1000

    async def waiting(self, queue: str, first: int, limit: int, before: int) -> tuple[int, list[bytes]]:
        """List the jobs of a part of the queue that wait, and were enqueued before `before` (milliseconds).

        Args:
            first: the number of jobs that are skipped.
            limit: the most jobs that are read.

        Returns:
            The number of jobs that were read, and the ids of those that wait.
        """
        read, *ids = await self._connections.run("waiting", queue, [Keys.of(queue).prefix, first, limit, before])
        return read, ids

    async def count_waiting(self, queue: str, first: int, limit: int) -> tuple[int, int]:
        """Count the jobs of a part of the queue that wait. Arguments as of `waiting`.

        Returns:
            The number of jobs that were read, and of those that wait.
        """
        read, counted = await self._connections.run("waiting", queue, [Keys.of(queue).prefix, first, limit, ""])
        return read, counted

    async def remove(self, queue: str, raw_ids: Sequence[bytes]) -> list[bytes]:
        """Remove jobs that wait. Return the ids of those that were removed: the others run, or are gone."""
        removed: list[bytes] = await self._connections.run("remove", queue, [Keys.of(queue).prefix, *raw_ids])
        return removed

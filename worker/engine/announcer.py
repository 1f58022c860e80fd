"""``Announcer``: announces in Redis the tasks that this worker knows, so that no other worker fails their jobs."""

import asyncio
from collections.abc import Sequence

from worker.broker.broker import Broker
from worker.broker.worker_records import WorkerRecords

_INTERVAL = 5.0  # seconds between two announcements
_LIFETIME = 30_000  # milliseconds that one is believed: longer than a loop is blocked or Redis away every now and then


class Announcer:
    """Announces tasks to every queue that the worker serves.

    Args:
        queues: their names.
        tasks: the names of the tasks.
    """

    def __init__(self, broker: Broker, queues: Sequence[str], tasks: Sequence[str]) -> None:
        self._workers = WorkerRecords(broker.connections)
        self._queues = tuple(queues)
        self._tasks = tuple(tasks)

    async def run(self) -> None:
        """Announce now, and again before it is forgotten."""
        while True:
            for name in self._queues:
                await self._workers.announce(name, self._tasks, _LIFETIME)
            await asyncio.sleep(_INTERVAL)

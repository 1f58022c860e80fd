"""``Announcer``: announces in Redis the tasks that this worker knows, so that no other worker fails their jobs.

The reply to an announcement is the last command to this worker: see :mod:`worker.engine.commander`.
"""

import asyncio
from collections.abc import Callable, Sequence

from worker.broker.broker import Broker
from worker.broker.worker_commands import GivenCommand
from worker.broker.worker_records import WorkerRecords

_INTERVAL = 5.0  # seconds between two announcements
_LIFETIME = 30_000  # milliseconds that an announcement holds: longer than a usual outage of Redis or blocked loop


class Announcer:
    """Announces tasks to every queue that the worker serves.

    Args:
        queues: the names of the queues.
        tasks: the names of the tasks.
        process: the id of this process.
        obey: gets the last command to this worker of each queue.
    """

    def __init__(
        self,
        broker: Broker,
        queues: Sequence[str],
        tasks: Sequence[str],
        *,
        process: str,
        obey: Callable[[str, GivenCommand | None], None],
    ) -> None:
        self._workers = WorkerRecords(broker.connections)
        self._queues = tuple(queues)
        self._tasks = tuple(tasks)
        self._process = process
        self._obey = obey

    async def run(self) -> None:
        """Announce the tasks now, and again before the announcement expires."""
        while True:
            commands = await self._workers.announce_to(self._queues, self._tasks, _LIFETIME, self._process)
            for name, command in commands.items():
                self._obey(name, command)
            await asyncio.sleep(_INTERVAL)

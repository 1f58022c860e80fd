"""``WorkerRecords``: what Redis has for others of live workers: health in arq's form, and the tasks that they know.

How a worker describes itself to people: see `worker.metrics.records`.
"""

from collections.abc import Sequence

from worker.broker.connections import Connections
from worker.broker.keys import Keys
from worker.broker.worker_commands import GivenCommand

_ANNOUNCED_AT_ONCE = 2000  # tasks of all queues in one round trip: each takes Redis about a microsecond


class WorkerRecords:
    """The records that a worker writes for each queue that it serves. They expire unless they are written again."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def record_health(
        self, queues: Sequence[str], worker_id: str, arq_record: str, lifetime: int, *, arq_key: str | None = None
    ) -> None:
        """Record for `lifetime` milliseconds, for arq's ``--check``, that a worker is healthy.

        Args:
            queues: its queues that one call can serve.
            arq_record: the record as arq's workers write it, but for the depth of the queue at its end.
            arq_key: the key of the record of all workers (default: arq's for each queue).
        """
        await self._connections.run_on("health", queues, [worker_id, lifetime, arq_record, arq_key or ""])

    async def forget_health(self, queue: str, worker_id: str, *, arq_key: str | None = None) -> None:
        """Delete a worker's health record, and after the last worker's also the one in arq's form."""
        keys = Keys.of(queue)
        async with self._connections.client.pipeline(transaction=False) as pipe:
            pipe.delete(keys.health(worker_id))
            pipe.srem(keys.healthy, worker_id)
            pipe.scard(keys.healthy)
            _, _, others = await pipe.execute()
        if not others:
            await self._connections.client.delete(arq_key or keys.arq_health)

    async def announce(self, queue: str, tasks: Sequence[str], lifetime: int, process: str = "") -> GivenCommand | None:
        """Record for `lifetime` milliseconds that a live worker of `queue` knows these tasks.

        Returns:
            The last command to the worker of `process`.
        """
        return (await self.announce_to([queue], tasks, lifetime, process))[queue]

    async def announce_to(
        self, queues: Sequence[str], tasks: Sequence[str], lifetime: int, process: str
    ) -> dict[str, GivenCommand | None]:
        """Announce tasks to several queues, as `announce`. A round trip serves as many as Redis takes at once."""
        commands: dict[str, GivenCommand | None] = {}
        most = max(_ANNOUNCED_AT_ONCE // max(len(tasks), 1), 1)
        for together in self._connections.together(queues):
            for begin in range(0, len(together), most):
                some = together[begin : begin + most]
                found = await self._connections.run_on("announce", some, [lifetime, process, *tasks])
                decoded = (None if command is None else GivenCommand.decode(command) for command in found)
                commands.update(zip(some, decoded, strict=True))
        return commands

    async def announced(self, queue: str) -> frozenset[str]:
        """The tasks that live workers of `queue` know. Empty if no worker serves the queue."""
        tasks = await self._connections.run("announced", queue, [Keys.of(queue).tasks])
        return frozenset(task.decode(errors="replace") for task in tasks)

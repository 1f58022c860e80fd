"""``WorkerRecords``: the records of live workers in Redis: their health, and the tasks that they know."""

from collections.abc import Sequence

from worker.broker.connections import Connections
from worker.broker.keys import Keys
from worker.broker.worker_commands import GivenCommand


class WorkerRecords:
    """The records that a worker writes for each queue that it serves. They expire unless they are written again."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def record_health(
        self,
        queue: str,
        worker_id: str,
        record: bytes,
        lifetime: int,
        *,
        arq_record: str = "",
        arq_key: str | None = None,
    ) -> None:
        """Write a worker's health record, which expires after `lifetime` milliseconds.

        Args:
            arq_record: the record as arq's workers write it (default: none is written).
            arq_key: its key (default: arq's for the queue).
        """
        keys = Keys.of(queue)
        async with self._connections.client.pipeline(transaction=False) as pipe:
            pipe.set(keys.health(worker_id), record, px=lifetime)
            if arq_record:
                pipe.set(arq_key or keys.arq_health, arq_record, px=lifetime)
            pipe.sadd(keys.healthy, worker_id)
            pipe.pexpire(keys.healthy, lifetime)
            await pipe.execute()

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

    async def health_records(self, queue: str) -> dict[str, bytes]:
        """The health records of the workers of `queue`, by worker id.

        The ids come from a set. A scan for the records' keys would visit the key of every job.
        """
        keys, redis = Keys.of(queue), self._connections.client
        ids = sorted(raw_id.decode(errors="replace") for raw_id in await redis.smembers(keys.healthy))  # type: ignore[misc]
        if not ids:
            return {}
        records = await redis.mget([keys.health(worker_id) for worker_id in ids])
        gone = [worker_id for worker_id, record in zip(ids, records, strict=True) if record is None]
        if gone:
            await redis.srem(keys.healthy, *gone)  # type: ignore[misc]
        return {worker_id: record for worker_id, record in zip(ids, records, strict=True) if record is not None}

    async def announce(self, queue: str, tasks: Sequence[str], lifetime: int, process: str = "") -> GivenCommand | None:
        """Record for `lifetime` milliseconds that a live worker of `queue` knows these tasks.

        Returns:
            The last command to the worker of `process`.
        """
        keys = Keys.of(queue)
        command = await self._connections.run("announce", queue, [keys.tasks, lifetime, keys.command(process), *tasks])
        return None if command is None else GivenCommand.decode(command)

    async def announced(self, queue: str) -> frozenset[str]:
        """The tasks that live workers of `queue` know. Empty if no worker serves the queue."""
        tasks = await self._connections.run("announced", queue, [Keys.of(queue).tasks])
        return frozenset(task.decode(errors="replace") for task in tasks)

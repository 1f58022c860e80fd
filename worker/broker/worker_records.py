"""``WorkerRecords``: the records of live workers in Redis: their health, and the tasks that they know."""

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

    async def record_health_of(
        self,
        queues: Sequence[str],
        worker_id: str,
        record: bytes,
        lifetime: int,
        *,
        arq_record: str,
        arq_key: str | None = None,
        depths: bytes = b"",
    ) -> None:
        """Write a worker's health records for queues that one call can serve, with the depths of these queues.

        Args:
            record: a JSON object with some members, to which the depths (``queued``) and arq's record are added.
            arq_record: the record as arq's workers write it, but for the depth at its end.
            arq_key: its key (default: arq's for each queue).
            depths: the depths of all queues of the worker, as JSON (default: those of `queues`, of this moment).
        """
        arguments = [worker_id, lifetime, record[1:-1], arq_record, arq_key or "", depths]
        await self._connections.run_on("health", queues, arguments)

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

"""``MetricsStore``: what workers have counted, in Redis: buckets of time, the latest ended jobs, and workers' records.

1. A worker adds its counts once a second, in one round trip a queue. Any number of workers add to the same buckets.
2. All times are by the server's clock, and every key expires by itself.
3. How a row of counts is read: :mod:`worker.metrics.counts`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from worker.broker.connections import Connections
from worker.broker.keys import Keys

RESOLUTIONS: Mapping[int, int] = {60: 8 * 3600, 600: 72 * 3600}
"""The lengths of buckets, and for how long they are kept, in seconds."""
MOST_LATEST = 1000
"""Ended jobs that are kept for each queue."""

_LATEST_KEPT = 72 * 3600 * 1000  # milliseconds
_RECORD_KEPT = 60_000  # milliseconds: a worker that has died or hangs can be seen for a while
_TASKS_AT_ONCE = 200  # tasks in one round trip: each takes Redis about 15 µs
_BUCKETS_AT_ONCE = 60  # buckets of all tasks in one round trip


@dataclass(slots=True)
class Measurements:
    """What a worker has to tell about one queue."""

    counts: Mapping[str, bytes]
    """A row of counts for each task."""
    ended: int = 0
    """How many ended jobs `latest` lists."""
    latest: bytes = b""
    """A list of ended jobs."""
    succeeded: Sequence[str] = ()
    """Tasks of which a job was completed just now."""
    record: bytes = b""
    """The worker's record."""


class Report(NamedTuple):
    """A worker's record."""

    process: str
    """The id of the worker's process."""
    age: float
    """Seconds since it was written."""
    record: bytes


class MetricsStore:
    """The metrics of the queues of one Redis."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def add(self, queue: str, process: str, lanes: int, measurements: Measurements) -> None:
        """Add counts to the buckets of this moment, and write the rest.

        Args:
            process: the id of the worker's process.
            lanes: the numbers in a row of counts.
        """
        tasks = list(measurements.counts.items())
        first, others = tasks[:_TASKS_AT_ONCE], tasks[_TASKS_AT_ONCE:]
        await self._add(queue, process, lanes, first, measurements)
        while others:
            first, others = others[:_TASKS_AT_ONCE], others[_TASKS_AT_ONCE:]
            await self._add(queue, process, lanes, first, Measurements({}))

    async def add_record(self, queues: Sequence[str], process: str, record: bytes) -> None:
        """Write a worker's record for queues without counts. One round trip, but in a cluster one for each queue."""
        for together in self._connections.together(queues):
            await self._connections.run_on("record", together, [process, record, _RECORD_KEPT])

    async def forget_worker(self, queue: str, process: str) -> None:
        """Delete the record of a worker that ends."""
        prefix = Keys.of(queue).metrics
        async with self._connections.client.pipeline(transaction=False) as pipe:
            pipe.delete(f"{prefix}worker:{process}")
            pipe.zrem(f"{prefix}workers", process)
            await pipe.execute()

    async def reports(self, queue: str) -> list[Report]:
        """The records of the workers of a queue, also of those that have been silent for up to a minute."""
        reports = await self._connections.run("reports", queue, [Keys.of(queue).metrics])
        return [Report(process.decode(), age / 1000, record) for process, age, record in reports]

    async def buckets(
        self, queue: str, resolution: int, count: int, tasks: Sequence[str]
    ) -> tuple[int, list[list[bytes | None]]]:
        """The counts of these tasks in the latest `count` buckets.

        Returns:
            The number of the last bucket (its start divided by the resolution), and for each bucket, the oldest first,
            the row of each task, or None.
        """
        arguments = [Keys.of(queue).metrics, resolution * 1000, count, *tasks]
        last, *rows = await self._connections.run("measured", queue, arguments)
        return last, rows

    async def whole_buckets(self, queue: str, resolution: int, numbers: Sequence[int]) -> list[dict[bytes, bytes]]:
        """The counts of every task in the buckets of these numbers."""
        prefix, found = Keys.of(queue).metrics, []
        for start in range(0, len(numbers), _BUCKETS_AT_ONCE):
            async with self._connections.client.pipeline(transaction=False) as pipe:
                for number in numbers[start : start + _BUCKETS_AT_ONCE]:
                    pipe.hgetall(f"{prefix}{resolution * 1000}:{number}")
                found += await pipe.execute()
        return found

    async def latest(self, queue: str) -> list[bytes]:
        """The lists of the latest ended jobs of a queue that have no job row, in no order."""
        found: dict[bytes, bytes] = await self._connections.client.hgetall(f"{Keys.of(queue).metrics}latest")  # type: ignore[misc]
        return [entry.partition(b":")[2] for number, entry in found.items() if number.isdigit()]

    async def successes(self, queue: str) -> dict[str, int]:
        """The time of the last success of each scheduled task, in milliseconds since the epoch."""
        times: dict[bytes, bytes] = await self._connections.client.hgetall(f"{Keys.of(queue).metrics}succeeded")  # type: ignore[misc]
        return {task.decode(errors="replace"): int(moment) for task, moment in times.items()}

    async def _add(
        self, queue: str, process: str, lanes: int, tasks: Sequence[tuple[str, bytes]], rest: Measurements
    ) -> None:
        arguments: list[Any] = [Keys.of(queue).metrics, lanes, process, rest.record, _RECORD_KEPT]
        arguments += (MOST_LATEST, _LATEST_KEPT, rest.ended, rest.latest, len(RESOLUTIONS), len(tasks))
        for resolution, kept in RESOLUTIONS.items():
            arguments += (resolution * 1000, (kept + resolution) * 1000)
        for task in tasks:
            arguments += task
        await self._connections.run("measure", queue, [*arguments, *rest.succeeded])

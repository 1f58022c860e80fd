"""One progress line for all workers of a supervisor, from their health records."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress

from db.text.plural import plural
from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.broker.metrics import MetricsStore
from worker.broker.worker_records import WorkerRecords
from worker.cli.progress_output import Display
from worker.metrics.reader import MetricsReader
from worker.metrics.records import WorkerReport

_PAUSE = 0.5  # seconds between two reads
_COUNTED = ("done", "failed", "retried")


class Totals:
    """The jobs that workers have done, summed over their restarts, as a restarted worker counts from zero."""

    def __init__(self, worker_ids: Sequence[str]) -> None:
        self._ids = frozenset(worker_ids)
        self._earlier: Counter[str] = Counter()
        self._latest: dict[str, WorkerReport] = {}
        self._healthy: Mapping[str, WorkerReport] = {}

    def update(self, records: Mapping[str, WorkerReport]) -> None:
        """Replace the records by the present ones, those of other workers of the queues included."""
        self._healthy = records
        self._latest.update((worker_id, record) for worker_id, record in records.items() if worker_id in self._ids)

    def remove_ended(self, worker_id: str) -> None:
        """Add the counts of a process that has ended to the earlier ones."""
        self._healthy = {other: record for other, record in self._healthy.items() if other != worker_id}
        record = self._latest.pop(worker_id, None)
        if record is not None:
            self._earlier += _counts(record)

    def line(self, depth: int) -> str:
        """The progress line.

        Args:
            depth: jobs in the queues, the running ones included.
        """
        counts = sum(map(_counts, self._latest.values()), self._earlier)
        running = {worker_id: len(record.jobs) for worker_id, record in self._healthy.items()}
        ours = self._ids & running.keys()
        parts = [
            f"{len(ours)} of {plural(len(self._ids), 'worker')}",
            *(f"{counts[name]:,} {name}" for name in _COUNTED),
        ]
        parts.append(f"{sum(running[worker_id] for worker_id in ours):,} running")
        parts.append(f"{max(depth - sum(running.values()), 0):,} queued")
        return " · ".join(parts)


class Progress:
    """Shows the progress line for as long as the supervisor runs.

    Args:
        url: the URL of Redis.
        names: the queues.
        worker_ids: the supervisor's workers.
    """

    def __init__(self, url: str, names: Sequence[str], worker_ids: Sequence[str], display: Display) -> None:
        self._broker = Broker(url)
        self._metrics = MetricsReader(self._broker)
        self._names = names
        self._totals = Totals(worker_ids)
        self._display = display

    async def run(self) -> None:
        """Give the display a new line twice a second.

        That is more often than the log shows one, as the last counts of a worker that dies are lost with its record.
        """
        while True:
            await asyncio.sleep(_PAUSE)
            self._display.show(await self.line())

    async def line(self) -> str:
        """The progress line as of now."""
        try:
            self._totals.update(await self._metrics.healthy_workers(self._names))
            return self._totals.line(sum((await self._broker.depths(self._names)).values()))
        except (RedisError, OSError) as error:
            return f"Redis does not answer: {error}"

    async def remove_ended(self, worker_id: str) -> None:
        """Count a worker that has ended, and delete its records, which are out of date."""
        self._totals.remove_ended(worker_id)
        connections = self._broker.connections
        with suppress(RedisError, OSError):
            ended = [worker for worker in await self._metrics.workers(self._names) if worker.id == worker_id]
            for name in self._names:
                await WorkerRecords(connections).forget_health(name, worker_id)
                for worker in ended:
                    await MetricsStore(connections).forget_worker(name, worker.process)

    async def close(self) -> None:
        await self._broker.close()


def _counts(record: WorkerReport) -> Counter[str]:
    return Counter({name: getattr(record, name) for name in _COUNTED})

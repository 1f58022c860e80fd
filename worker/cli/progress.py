"""How far the workers of a supervisor are, in one line, from their health records."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress

from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.broker.worker_records import WorkerRecords
from worker.cli.progress_output import Display
from worker.cli.worker_records import WorkerRecord, fleet

_PAUSE = 0.5  # seconds between two looks
_COUNTED = ("done", "failed", "retried")


class Tally:
    """What some workers have done, summed over their lives, as each life begins at zero."""

    def __init__(self, worker_ids: Sequence[str]) -> None:
        self._ids = frozenset(worker_ids)
        self._earlier: Counter[str] = Counter()
        self._latest: dict[str, WorkerRecord] = {}
        self._well: Mapping[str, WorkerRecord] = {}

    def take(self, records: Mapping[str, WorkerRecord]) -> None:
        """The records that there are now: also those of workers elsewhere."""
        self._well = records
        self._latest.update((worker_id, record) for worker_id, record in records.items() if worker_id in self._ids)

    def died(self, worker_id: str) -> None:
        """One of its lives is over."""
        self._well = {one: record for one, record in self._well.items() if one != worker_id}
        record = self._latest.pop(worker_id, None)
        if record is not None:
            self._earlier += _counts(record)

    def line(self, depth: int) -> str:
        """All of it; `depth` is how many jobs the queues hold, those that run included."""
        counts = sum(map(_counts, self._latest.values()), self._earlier)
        running = {worker_id: record.running for worker_id, record in self._well.items()}
        ours = self._ids & running.keys()
        parts = [f"{len(ours)} of {len(self._ids)} workers", *(f"{counts[name]:,} {name}" for name in _COUNTED)]
        parts.append(f"{sum(running[worker_id] for worker_id in ours):,} running")
        parts.append(f"{max(depth - sum(running.values()), 0):,} queued")
        return " · ".join(parts)


class Progress:
    """Shows the line, for as long as the supervisor runs.

    Args:
        url: Redis'.
        names: the queues.
        worker_ids: the supervisor's workers.
    """

    def __init__(self, url: str, names: Sequence[str], worker_ids: Sequence[str], display: Display) -> None:
        self._broker = Broker(url)
        self._names = names
        self._tally = Tally(worker_ids)
        self._display = display

    async def run(self) -> None:
        """Show a line every now and then; look more often, as what a worker says of itself goes with it."""
        while True:
            await asyncio.sleep(_PAUSE)
            self._display.show(await self.line())

    async def line(self) -> str:
        """How far they are now."""
        try:
            self._tally.take(await fleet(self._broker, self._names))
            return self._tally.line(sum((await self._broker.depths(self._names)).values()))
        except (RedisError, OSError) as error:
            return f"Redis does not answer: {error}"

    async def died(self, worker_id: str) -> None:
        """A worker has ended: its record is not to be believed any more."""
        self._tally.died(worker_id)
        with suppress(RedisError, OSError):
            for name in self._names:
                await WorkerRecords(self._broker.connections).forget_health(name, worker_id)

    async def close(self) -> None:
        await self._broker.close()


def _counts(record: WorkerRecord) -> Counter[str]:
    return Counter({name: getattr(record, name) for name in _COUNTED})

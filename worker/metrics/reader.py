"""``MetricsReader``: read what all workers have measured.

    reader = MetricsReader(broker)
    for series in await reader.throughput(HOUR, ["arq:queue"]):
        series.total.outcomes, series.total.ran.p95, [point.counts.completed for point in series.points]

Nothing here counts jobs. Past buckets of all tasks are kept in memory, so that a page that is fetched again reads few.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from worker.broker.broker import Broker
from worker.broker.metrics import MOST_LATEST, MetricsStore
from worker.context import from_milliseconds
from worker.metrics.counts import NOTHING, Counts, add, decode
from worker.metrics.meter import ALL_TASKS
from worker.metrics.records import EndedJob, WorkerReport, decode_ended, decode_reports

_MOST_CACHED = 2000  # buckets of all tasks: those of three days in four queues
_LATE = 2  # buckets that may still grow: the present one, and the last one on its way


@dataclass(frozen=True, slots=True)
class Window:
    """A time up to now, and how finely it is divided."""

    seconds: int
    resolution: int
    """Seconds of a bucket: 60, for eight hours at most, or 600, for 72 hours at most."""

    @property
    def buckets(self) -> int:
        return self.seconds // self.resolution


HOUR = Window(3600, 60)
EIGHT_HOURS = Window(8 * 3600, 60)
DAY = Window(24 * 3600, 600)
THREE_DAYS = Window(72 * 3600, 600)


@dataclass(frozen=True, slots=True)
class Point:
    """What happened in one bucket. The last bucket of a series is not over yet."""

    start: datetime
    counts: Counts


@dataclass(frozen=True, slots=True)
class Series:
    """What happened in a queue, over the time of a window."""

    queue: str
    task: str | None
    """None: all tasks of the queue."""
    window: Window
    points: tuple[Point, ...]
    """Every bucket of the window, the oldest first."""
    total: Counts

    @property
    def rate(self) -> float:
        """Jobs a second that are over, in the mean of the window."""
        return self.total.finished / self.window.seconds


@dataclass(frozen=True, slots=True)
class TaskTotal:
    """What happened to the jobs of one task in one queue, in all of a window."""

    queue: str
    task: str
    """A task of a registry, or `worker.metrics.meter.OTHER_TASKS`."""
    total: Counts


class MetricsReader:
    """Reads the metrics of one Redis.

    Args:
        broker: the broker of that Redis.
    """

    def __init__(self, broker: Broker) -> None:
        self._store = MetricsStore(broker.connections)
        self._past: OrderedDict[tuple[str, int, int], dict[str, tuple[int, ...]]] = OrderedDict()

    async def throughput(self, window: Window, queues: Iterable[str], task: str | None = None) -> list[Series]:
        """What happened in each of these queues, in one round trip a queue.

        Args:
            task: only the jobs of this task.
        """
        return [await self._series(window, queue, task) for queue in queues]

    async def by_task(self, window: Window, queues: Iterable[str]) -> list[TaskTotal]:
        """What happened to each task that had jobs, the busiest first.

        The first call reads all buckets of the window, later ones only those that are new.
        """
        totals: list[TaskTotal] = []
        for queue in queues:
            rows: dict[str, list[tuple[int, ...]]] = {}
            for bucket in await self._whole_buckets(window, queue):
                for task, row in bucket.items():
                    rows.setdefault(task, []).append(row)
            totals += [TaskTotal(queue, task, Counts.of(*each)) for task, each in rows.items() if task != ALL_TASKS]
        return sorted(totals, key=lambda each: (-each.total.busy, -each.total.finished, each.queue, each.task))

    async def workers(self, queues: Iterable[str]) -> list[WorkerReport]:
        """The workers of these queues, by id. A worker that has died is unwell for a minute, then it is gone."""
        return decode_reports([report for queue in queues for report in await self._store.reports(queue)])

    async def healthy_workers(self, queues: Iterable[str]) -> dict[str, WorkerReport]:
        """The healthy workers of these queues, by id."""
        return {worker.id: worker for worker in await self.workers(queues) if worker.is_healthy}

    async def latest(self, queue: str) -> list[EndedJob]:
        """The latest ended jobs of a queue that have no job row, the newest first: 1,000 at most."""
        jobs = [job for raw in await self._store.latest(queue) for job in decode_ended(raw)]
        return sorted(jobs, key=lambda job: (-job.finished_at, job.id))[:MOST_LATEST]

    async def successes(self, queue: str) -> dict[str, datetime]:
        """When each scheduled task has last succeeded in this queue."""
        return {task: from_milliseconds(moment) for task, moment in (await self._store.successes(queue)).items()}

    async def _series(self, window: Window, queue: str, task: str | None) -> Series:
        field = ALL_TASKS if task is None else task
        last, rows = await self._store.buckets(queue, window.resolution, window.buckets, [field])
        decoded = [_decoded(row) for (row,) in rows]
        points = tuple(
            Point(_start(number, window), NOTHING if row is None else Counts(row))
            for number, row in enumerate(decoded, last - window.buckets + 1)
        )
        return Series(queue, task, window, points, Counts(tuple(add(row for row in decoded if row is not None))))

    async def _whole_buckets(self, window: Window, queue: str) -> list[dict[str, tuple[int, ...]]]:
        last, _ = await self._store.buckets(queue, window.resolution, 1, [ALL_TASKS])
        keys = [(queue, window.resolution, number) for number in range(last - window.buckets + 1, last + 1)]
        found = {key: self._past[key] for key in keys if key in self._past}
        missing = [key for key in keys if key not in found]
        read = await self._store.whole_buckets(queue, window.resolution, [number for *_, number in missing])
        for key, bucket in zip(missing, map(_decoded_bucket, read), strict=True):
            found[key] = bucket
            if key[-1] <= last - _LATE:
                self._past[key] = bucket
        while len(self._past) > _MOST_CACHED:
            self._past.popitem(last=False)
        return list(found.values())


def _decoded(row: bytes | None) -> tuple[int, ...] | None:
    return None if row is None else decode(row)


def _decoded_bucket(bucket: dict[bytes, bytes]) -> dict[str, tuple[int, ...]]:
    rows = {task.decode(errors="replace"): decode(raw) for task, raw in bucket.items()}
    return {task: row for task, row in rows.items() if row is not None}


def _start(number: int, window: Window) -> datetime:
    return from_milliseconds(number * window.resolution * 1000)


def total_of(series: Sequence[Series]) -> Counts:
    """The sum of several queues."""
    return Counts.of(*(each.total.row for each in series)) if series else NOTHING

"""``Overview``: what has happened of late in all queues, and what needs attention.

1. Nothing here counts jobs: figures come from what workers have measured.
2. Each check has its own time limit. One that gets no answer is itself a reason for attention, and delays no other.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from sqlalchemy.exc import SQLAlchemyError

from db import default_database
from db.errors import DbError
from db.text.plural import plural
from worker.admin.deployment import Deployment
from worker.admin.failure_groups import FailureOverview
from worker.admin.queues import QueueInfo, QueueState
from worker.broker.errors import RedisError
from worker.broker.server_info import RedisInfo, redis_info
from worker.errors import LedgerError, WorkerError
from worker.ledger.schema_check import check
from worker.ledger.search import MOST_COUNTED, JobSearch
from worker.metrics.counts import NOTHING, Counts
from worker.metrics.reader import HOUR, MetricsReader, Series, Window
from worker.metrics.records import WorkerReport, WorkerState

_TIMEOUT = 2.0  # seconds that one check may take
_CLOCKS = 2_000  # milliseconds that clocks may be apart
_BACKLOG = 10_000  # milliseconds for which a row may wait for the relay
_NEW = 3_600_000  # milliseconds for which a kind of error is new
_LATE = 300.0  # seconds for which the first job of a queue may be due
_RECENT = 5  # minutes over which a queue's rate is taken
_SCHEMA_FRESH = 60.0  # seconds for which the table is not checked again


class Level(NamedTuple):
    """How much a matter presses."""

    name: str
    rank: int


BAD, WARN = Level("bad", 0), Level("warn", 1)


class Matter(NamedTuple):
    """Something that needs attention."""

    level: Level
    title: str
    detail: str
    page: str = ""
    """The page of the dashboard that shows more."""


class Moment(NamedTuple):
    """What happened in all queues in one bucket."""

    start: datetime
    counts: Counts


@dataclass(frozen=True, slots=True)
class Activity:
    """What happened in all queues, over the time of a window."""

    window: Window
    moments: tuple[Moment, ...]
    total: Counts
    by_queue: Mapping[str, Series]

    @property
    def rate(self) -> float:
        """Jobs a second that are over, in the mean of the window."""
        return self.total.finished / self.window.seconds


class QueueRate(NamedTuple):
    """How fast a queue is worked off, in the last minutes."""

    rate: float
    """Jobs a second that are over."""
    empty_in: float | None
    """Seconds until its due jobs are done at this rate. None if nothing is done, or nothing is due."""
    running: int


class OverviewReader:
    """Reads the overview of a deployment.

    Args:
        deployment: the servers.
        reader: the metrics of its Redis.
    """

    def __init__(self, deployment: Deployment, reader: MetricsReader) -> None:
        self._deployment = deployment
        self._reader = reader
        self._connections = deployment.broker.connections
        self._search = None if deployment.ledger is None else JobSearch(deployment.ledger.name)
        self._schema: tuple[float, Matter | None] = (-_SCHEMA_FRESH, None)

    async def activity(self, window: Window, queues: Sequence[str]) -> Activity:
        """What has happened in these queues."""
        series = await self._reader.throughput(window, queues)
        by_time: dict[datetime, list[tuple[int, ...]]] = {}
        for each in series:
            for point in each.points:
                by_time.setdefault(point.start, []).append(point.counts.row)
        moments = tuple(Moment(start, Counts.of(*rows)) for start, rows in sorted(by_time.items()))
        total = Counts.of(*(moment.counts.row for moment in moments)) if moments else NOTHING
        return Activity(window, moments, total, {each.queue: each for each in series})

    async def rates(self, queues: Sequence[QueueInfo], workers: Sequence[WorkerReport]) -> dict[str, QueueRate]:
        """How fast each queue is worked off."""
        series = await self._reader.throughput(HOUR, [queue.name for queue in queues])
        rates = {}
        for queue, each in zip(queues, series, strict=True):
            # The last bucket is not over yet.
            recent = each.points[-_RECENT - 1 : -1]
            rate = sum(point.counts.finished for point in recent) / (60 * max(len(recent), 1))
            running = sum(job.queue == queue.name for worker in workers for job in worker.jobs)
            rates[queue.name] = QueueRate(rate, queue.due / rate if rate and queue.due else None, running)
        return rates

    async def matters(
        self, queues: Sequence[QueueInfo], workers: Sequence[WorkerReport], failures: FailureOverview
    ) -> list[Matter]:
        """What needs attention, the worst first."""
        checks: list[Callable[[], Awaitable[Sequence[Matter]]]] = [self._redis]
        if self._search is not None:
            checks += [self._table, self._relay, self._database_clock]
        found = await asyncio.gather(*map(_answered, checks))
        matters = [matter for each in found for matter in each]
        matters += [matter for queue in queues for matter in _of_queue(queue, workers)]
        matters += [_unwell(worker) for worker in workers if worker.state is WorkerState.UNWELL]
        matters += _new_errors(failures)
        return sorted(matters, key=lambda matter: matter.level.rank)

    async def _redis(self) -> list[Matter]:
        return [matter for server in await redis_info(self._connections) for matter in _of_redis(server)]

    async def _database_clock(self) -> list[Matter]:
        assert self._search is not None  # noqa: S101 - see `matters`
        apart = await self._search.clock() - time.time() * 1000
        return [_clocks("the database", apart)] if abs(apart) > _CLOCKS else []

    async def _table(self) -> list[Matter]:
        assert self._deployment.ledger is not None  # noqa: S101 - see `matters`
        checked, matter = self._schema
        if time.monotonic() - checked > _SCHEMA_FRESH:
            matter = None
            try:
                await check(default_database(), self._deployment.ledger.name)
            except LedgerError as error:
                matter = Matter(BAD, "The ledger's table is old", str(error))
            self._schema = (time.monotonic(), matter)
        return [] if matter is None else [matter]

    async def _relay(self) -> list[Matter]:
        assert self._search is not None  # noqa: S101 - see `matters`
        number, since = await self._search.overdue()
        if since is None or time.time() * 1000 - since < _BACKLOG:
            return []
        jobs = f"{min(number, MOST_COUNTED):,}{'+' if number > MOST_COUNTED else ''}"
        seconds = time.time() - since / 1000
        detail = f"{jobs} committed jobs wait for a worker to check them, the first for {seconds:,.0f} s."
        return [Matter(BAD, "The relay is behind", detail)]


async def _answered(ask: Callable[[], Awaitable[Sequence[Matter]]]) -> Sequence[Matter]:
    try:
        async with asyncio.timeout(_TIMEOUT):
            return await ask()
    except TimeoutError:
        return [Matter(WARN, "A check got no answer", f"It took longer than {_TIMEOUT:.0f} s.")]
    except (SQLAlchemyError, DbError, RedisError, WorkerError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).partition("\n")[0]
        return [Matter(BAD, "A check has failed", reason or type(error).__name__)]


def _of_redis(server: RedisInfo) -> list[Matter]:
    matters = []
    if server.policy != "noeviction":
        detail = f"maxmemory-policy is {server.policy}: Redis may delete jobs when it is full. Set it to noeviction."
        matters.append(Matter(BAD, "Redis evicts keys", detail))
    used, most = server.used_memory, server.max_memory
    if most and used > 0.9 * most:
        detail = f"{used / most:.0%} of its maxmemory are in use. It refuses new jobs when it is full."
        matters.append(Matter(BAD, "Redis is nearly full", detail))
    if abs(apart := server.clock_ahead * 1000) > _CLOCKS:
        matters.append(_clocks("Redis", apart))
    return matters


def _of_queue(queue: QueueInfo, workers: Sequence[WorkerReport]) -> list[Matter]:
    matters = []
    page = "queues"
    serving = [each for each in workers if queue.name in each.queues and each.state is not WorkerState.UNWELL]
    if queue.depth and not queue.workers and not serving:
        matters.append(
            Matter(
                BAD,
                f"No worker serves {queue.name}",
                plural(queue.depth, "job waits or runs.", "jobs wait or run."),
                page,
            )
        )
    elif queue.state is QueueState.ACTIVE and queue.oldest_due is not None and queue.oldest_due > _LATE:
        minutes = queue.oldest_due / 60
        detail = f"Its first job has been due for {minutes:,.0f} minutes, and {_due(queue)}."
        matters.append(Matter(WARN, f"{queue.name} is late", detail, page))
    if queue.state is not QueueState.ACTIVE and queue.pause is not None:
        until = f" until {queue.pause.until:%Y-%m-%d %H:%M} UTC" if queue.pause.until else ""
        since = f"Since {queue.pause.since:%Y-%m-%d %H:%M} UTC{until}, by {queue.pause.actor}."
        detail = f"{since} {_due(queue)}."
        matters.append(Matter(WARN, f"{queue.name} is {queue.state}", detail, page))
    return matters


def _due(queue: QueueInfo) -> str:
    return plural(queue.due, "job is due", "jobs are due")


def _unwell(worker: WorkerReport) -> Matter:
    return Matter(BAD, f"Worker {worker.id} is unwell", worker.why or "It does not say why.", "workers")


def _new_errors(failures: FailureOverview) -> list[Matter]:
    """Kinds of errors that were seen for the first time within the last hour."""
    if not failures.is_complete:
        return []
    now = time.time() * 1000
    new = [group for group in failures.groups if now - group.oldest < _NEW]
    matters = []
    for group in new[:3]:
        count = plural(group.jobs, "job")
        matters.append(
            Matter(WARN, f"New error in {group.task}", f"{group.kind or 'no error text'} ({count})", "failures")
        )
    if len(new) > len(matters):
        matters.append(
            Matter(WARN, f"{len(new) - 3} more new kinds of errors", "All within the last hour.", "failures")
        )
    return matters


def _clocks(server: str, apart: float) -> Matter:
    where = "ahead of" if apart > 0 else "behind"
    detail = f"The clock of {server} is {abs(apart) / 1000:.1f} s {where} this machine's. Due times shift by that."
    return Matter(WARN, "Clocks are apart", detail)

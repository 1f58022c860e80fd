"""``ClusterReader``: the state of all queues, workers and job rows, for Prometheus."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from db.errors import DbError
from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.broker.queue_state import QueueInspector
from worker.broker.worker_records import WorkerRecords
from worker.errors import WorkerError
from worker.ledger import State
from worker.ledger.counts import count_rows
from worker.metrics.reader import MetricsReader
from worker.metrics.records import WorkerReport, WorkerState

MOST_COUNTED = 100_000
"""Job rows of a state that are counted. More take the database too long."""

_TIMEOUT = 2.5  # seconds for each of the servers
_ABLE = frozenset({WorkerState.WORKING, WorkerState.STARTING})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class QueueSnapshot:
    """One queue at one moment."""

    name: str
    scheduled: int
    """Jobs that are due later."""
    waiting: int
    """Jobs that are due and wait for a worker."""
    running: int
    oldest_due: float
    """Seconds for which the oldest waiting job has been due. 0 if none waits."""
    workers: int
    """Workers that start jobs of the queue."""


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """All queues, workers and job rows at one moment."""

    redis_answers: bool
    database_answers: bool | None
    """None: there is no database."""
    queues: Sequence[QueueSnapshot] = ()
    workers: Mapping[WorkerState, int] = field(default_factory=dict)
    failed_jobs: int | None = None
    """Failed job rows, `MOST_COUNTED` at most."""
    pending: int | None = None
    """Pending job rows, `MOST_COUNTED` at most."""
    successes: Mapping[str, datetime] = field(default_factory=dict)
    """When each scheduled task has last succeeded."""


class ClusterReader:
    """Reads the state of the queues of one Redis, and of the ledger.

    Args:
        queues: the names of the queues. Those that their workers serve besides are read, too.
        ledger: the name of the table of job rows; None: there is no database.
    """

    def __init__(self, broker: Broker, queues: Sequence[str], ledger: str | None) -> None:
        self._queues_of = QueueInspector(broker.connections)
        self._records = WorkerRecords(broker.connections)
        self._reader = MetricsReader(broker)
        self._queues = tuple(queues)
        self._ledger = ledger

    async def read(self) -> ClusterSnapshot:
        """Read the state. What a server that does not answer would tell is left out."""
        of_redis, rows = await asyncio.gather(_answer(self._read_redis()), _answer(self._read_rows()))
        failed, pending = rows or (None, None)
        database_answers = None if self._ledger is None else rows is not None
        if of_redis is None:
            return ClusterSnapshot(False, database_answers, failed_jobs=failed, pending=pending)
        queues, workers, successes = of_redis
        states = Counter(worker.state for worker in workers)
        return ClusterSnapshot(True, database_answers, queues, states, failed, pending, successes)

    async def _read_redis(self) -> tuple[list[QueueSnapshot], list[WorkerReport], dict[str, datetime]]:
        names = list(self._queues)
        workers = await self._reader.workers(names)
        others = {name for worker in workers for name in worker.queues if name not in names}
        if others:
            names += sorted(others)
            workers = await self._reader.workers(names)
        queues = [await self._read_queue(name, workers) for name in names]
        successes: dict[str, datetime] = {}
        for name in names:
            for task, moment in (await self._successes(name)).items():
                successes[task] = max(moment, successes.get(task, moment))
        return queues, workers, successes

    async def _read_queue(self, name: str, workers: Sequence[WorkerReport]) -> QueueSnapshot:
        state = await self._queues_of.snapshot(name)
        running = sum(job.queue == name for worker in workers if not worker.is_silent for job in worker.jobs)
        later = state.depth - state.due
        running = min(running, later)  # the reports are a second old
        able = sum(name in worker.queues and worker.state in _ABLE for worker in workers)
        return QueueSnapshot(name, later - running, state.due, running, state.oldest_due or 0.0, able)

    async def _successes(self, queue: str) -> dict[str, datetime]:
        """The successes of the tasks that living workers know. Without living workers, of all."""
        successes, known = await self._reader.successes(queue), await self._records.announced(queue)
        return {task: moment for task, moment in successes.items() if not known or task in known}

    async def _read_rows(self) -> tuple[int, int] | None:
        if self._ledger is None:
            return None
        failed = await count_rows(self._ledger, State.FAILED, MOST_COUNTED)
        return failed, await count_rows(self._ledger, State.PENDING, MOST_COUNTED)


async def _answer(reading: Awaitable[T]) -> T | None:
    """What was read; None if the server does not answer."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            return await reading
    except (RedisError, OSError, TimeoutError, SQLAlchemyError, DbError, WorkerError):
        return None

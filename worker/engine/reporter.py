"""``Reporter``: write what this worker has counted, and its record, to Redis once a second.

1. One round trip for each queue with changes, and one for all others, on no job's way. What Redis does not take is told
   the next time: a restart loses a second.
2. The worker's record says what it runs and how it is, also while it is unwell: the health record does not exist then.
3. A failure here costs no job anything: it is logged, and the worker stays healthy.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.broker.metrics import Measurements, MetricsStore
from worker.broker.served_queues import ServedQueues
from worker.metrics.counts import LANES, OUTCOMES, encode
from worker.metrics.meter import Changes, Meter
from worker.metrics.records import encode_ended, encode_report

logger = logging.getLogger("worker")

_INTERVAL = 1.0  # seconds between two reports
_SERVED_INTERVAL = 15.0  # seconds between two writes of the queues' names
_WARN_AGAIN = 30.0  # seconds between two warnings
_COMPLETED = OUTCOMES.index("completed")


class Reporter:
    """Writes a worker's metrics.

    Args:
        queues: the names of the queues.
        worker_id: the worker's name, for the latest ended jobs.
        process: the id of this process, which no other one has.
        scheduled: the names of scheduled tasks, whose last success is kept.
        describe: returns the fields of the worker's record.
        running: returns the running jobs of each queue that has some: see `RunningJob`.
    """

    def __init__(
        self,
        broker: Broker,
        queues: Sequence[str],
        meter: Meter,
        *,
        worker_id: str,
        process: str,
        scheduled: Collection[str],
        describe: Callable[[], dict[str, Any]],
        running: Callable[[], Mapping[str, list[Sequence[Any]]]],
    ) -> None:
        self._store = MetricsStore(broker.connections)
        self._queues = tuple(queues)
        self._meter = meter
        self._worker_id = worker_id
        self._process = process
        self._scheduled = frozenset(scheduled)
        self._describe = describe
        self._running = running
        self._last_warning = -_WARN_AGAIN
        self._served = ServedQueues(broker.connections)
        self._last_served = -_SERVED_INTERVAL

    async def run(self) -> None:
        """Report every second, for ever."""
        while True:
            await self.report()
            await asyncio.sleep(_INTERVAL)

    async def report(self) -> None:
        """Write what has changed since the last report."""
        described, running = self._describe(), self._running()
        idle = []
        for queue in self._queues:
            changes = self._meter.changes(queue)
            if not (changes.rows or changes.latest or queue in running):
                idle.append(queue)
                continue
            try:
                await self._write(queue, changes, described, running.get(queue, ()))
            except BaseException as error:
                self._meter.keep(changes)
                if not isinstance(error, Exception):
                    raise
                self._warn(error)
            else:
                self._meter.confirm(changes)
        await self._write_idle(idle, described)
        await self._write_served()

    async def forget(self) -> None:
        """Write the last counts, and delete the worker's record: the worker ends.

        Raises:
            RedisError, OSError: Redis does not answer.
        """
        await self.report()
        for queue in self._queues:
            await self._store.forget_worker(queue, self._process)

    async def _write_idle(self, queues: Sequence[str], described: dict[str, Any]) -> None:
        """Write the record for queues in which nothing has happened."""
        if queues:
            try:
                await self._store.add_record(queues, self._process, encode_report(described, ()))
            except Exception as error:  # noqa: BLE001 - as for the other queues: a failure costs no job anything
                self._warn(error)

    async def _write_served(self) -> None:
        """Write the names of the queues, now and then."""
        now = time.monotonic()
        if now - self._last_served < _SERVED_INTERVAL:
            return
        self._last_served = now
        try:
            await self._served.record(self._queues)
        except Exception as error:  # noqa: BLE001 - as above
            self._warn(error)

    async def _write(
        self, queue: str, changes: Changes, described: dict[str, Any], running: Iterable[Sequence[Any]]
    ) -> None:
        rows = changes.rows
        measurements = Measurements(
            counts={task: encode(row) for task, row in rows.items()},
            ended=len(changes.latest),
            latest=encode_ended(self._worker_id, changes.latest) if changes.latest else b"",
            succeeded=[task for task, row in rows.items() if task in self._scheduled and row[_COMPLETED]],
            record=encode_report(described, running),
        )
        await self._store.add(queue, self._process, LANES, measurements)

    def _warn(self, error: Exception) -> None:
        now = time.monotonic()
        if now - self._last_warning < _WARN_AGAIN:
            return
        self._last_warning = now
        if isinstance(error, RedisError | OSError):
            logger.warning("metrics cannot be written: %s: %s", type(error).__name__, error)
        else:
            logger.error("internal error while writing metrics; the worker goes on", exc_info=error)

"""``ProgressSender``: send what jobs report of their progress, each at most once every half a second.

1. A report costs the job nothing but a call: a background task sends the latest one.
2. A job's last report is sent before its outcome is written, and is then kept for a minute.
3. A report that Redis does not take is dropped: the next one replaces it.
"""

import asyncio
import logging
import threading
import time
from contextvars import Context
from dataclasses import dataclass

from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.broker.progress import ProgressRecord, ProgressRecords
from worker.broker.records import now_ms
from worker.context import JobContext

logger = logging.getLogger("worker")

_INTERVAL = 0.5  # seconds between two reports of one job that are sent
_KEPT_WHILE_RUNNING = 24 * 60 * 60 * 1000  # milliseconds
_KEPT_AFTERWARDS = 60_000  # milliseconds: who follows the job sees its last report
_LONGEST_NOTE = 500  # characters
_LAST_REPORT = 1.0  # seconds that sending it may take


@dataclass(slots=True)
class _Reported:
    """What one job has reported."""

    latest: ProgressRecord
    is_sent: bool = False
    sending: "asyncio.Task[None] | None" = None


class ProgressSender:
    """Sends the progress of jobs."""

    def __init__(self, broker: Broker) -> None:
        self._records = ProgressRecords(broker.connections)
        self.reports: dict[JobContext, _Reported] = {}
        """What running jobs have reported."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def start(self) -> None:
        """Send from the running event loop."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()

    def report(self, job: JobContext, done: float, total: float | None, note: str) -> None:
        """Accept a report, from any thread.

        Raises:
            TypeError, ValueError: `done` or `total` is not a number.
        """
        if self._loop is None:
            return
        amounts = float(done), None if total is None else float(total)
        record = ProgressRecord(*amounts, str(note)[:_LONGEST_NOTE], job.attempt, job.enqueued_ms, now_ms())
        if threading.get_ident() == self._thread:
            self._accept(job, record)
        else:
            self._loop.call_soon_threadsafe(self._accept, job, record)

    async def ended(self, job: JobContext) -> None:
        """Send the last report of a job whose body has ended, if it has reported anything."""
        reported = self.reports.pop(job, None)
        if reported is None:
            return
        if reported.sending is not None:
            reported.sending.cancel()
        try:
            async with asyncio.timeout(_LAST_REPORT):
                await self._write(job, reported.latest, _KEPT_AFTERWARDS)
        except TimeoutError:
            logger.debug("the last progress of job %s is not sent: Redis does not answer", job.job_id)

    def _accept(self, job: JobContext, record: ProgressRecord) -> None:
        reported = self.reports.get(job)
        if reported is None:
            reported = self.reports[job] = _Reported(record)
        reported.latest, reported.is_sent = record, False
        if reported.sending is None:
            assert self._loop is not None  # noqa: S101 - `report` has checked it
            # In a context of its own: it is no part of the job.
            reported.sending = self._loop.create_task(self._send(job, reported), context=Context())

    async def _send(self, job: JobContext, reported: _Reported) -> None:
        """Send the latest report, and again after an interval if there is a newer one."""
        while not reported.is_sent:
            began, reported.is_sent = time.monotonic(), True
            await self._write(job, reported.latest, _KEPT_WHILE_RUNNING)
            await asyncio.sleep(max(_INTERVAL - (time.monotonic() - began), 0.0))
        reported.sending = None

    async def _write(self, job: JobContext, record: ProgressRecord, lifetime: int) -> None:
        try:
            await self._records.write(job.queue, job.job_id, record, lifetime)
        except (RedisError, OSError) as error:
            logger.debug("the progress of job %s is not sent: %s", job.job_id, error)

"""``Health``: find out each second whether this worker can run jobs.

It can while Redis answers claims, leases are renewed, the database answers, and outcomes reach the ledger. So
``arq --check`` and ``python -m worker health`` fail for a worker whose process is alive but cannot run jobs. The first
asks for a record in arq's form, which expires after a few seconds; the second reads `last_healthy` in the worker's
report.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime

from worker.broker.broker import Broker
from worker.broker.worker_records import WorkerRecords

logger = logging.getLogger("worker")

_INTERVAL = 1.0  # seconds between two records
_LIFETIME = 4000  # milliseconds after which a record expires
UNHEALTHY_WITHIN = 5.0
"""Seconds after which the record of an unhealthy worker has expired."""
_FRESH = 3.0  # seconds for which an answer counts as recent
_STANDSTILL = 15.0  # seconds that outcomes may wait for the ledger while none is written
_DATABASE_TIMEOUT = 2.0  # seconds
NOT_YET = "it has not asked for jobs yet"
"""`Health.trouble` of a worker that starts."""


@dataclass(frozen=True, slots=True)
class HealthSnapshot:
    """The state of an engine at one moment."""

    running: int
    done: int
    failed: int
    retried: int
    loop_lag: float
    """Seconds."""
    is_claiming: bool
    """Whether it has a free slot, and is neither quiet nor stopping."""
    last_claim: float
    """Time of the last answer of Redis, by the monotonic clock."""
    last_beat: float
    """Time of the last renewal of all leases, by the monotonic clock."""
    standstill: float
    """Seconds for which outcomes have waited for the ledger while none was written."""
    slots_are_held: bool
    """Whether each slot is held by a job that runs past its limit and does not end."""


class Health:
    """Finds out whether the worker is healthy, and keeps the record in arq's form.

    Args:
        queue_names: each queue gets the record, with its depth.
        snapshot: returns the state of the engine.
        ask_database: checks that the default database answers.
        arq_key: the key of the record in arq's form (default: one for each queue).
    """

    def __init__(
        self,
        broker: Broker,
        queue_names: tuple[str, ...],
        worker_id: str,
        snapshot: Callable[[], HealthSnapshot],
        ask_database: Callable[[], Awaitable[None]],
        *,
        arq_key: str | None = None,
    ) -> None:
        self._broker = broker
        self._workers = WorkerRecords(broker.connections)
        self._names = queue_names
        self._worker_id = worker_id
        self._snapshot = snapshot
        self._ask_database = ask_database
        self._arq_key = arq_key
        self._last_failure = -_FRESH
        self._failure = ""
        self.trouble = NOT_YET
        """Why the worker is unhealthy. Empty while it is healthy."""
        self._last_healthy: float | None = None

    @property
    def last_healthy(self) -> float | None:
        """Seconds since the worker was last found healthy. None: never yet."""
        return None if self._last_healthy is None else time.monotonic() - self._last_healthy

    def record_failure(self, failure: str) -> None:
        """Record that a loop of the engine has failed. The loop is run again within 2 seconds."""
        logger.debug("unhealthy: %s", failure)
        self._last_failure = time.monotonic()
        self._failure = failure

    async def run(self) -> None:
        """Write the record every second while the worker is healthy."""
        while True:
            self.trouble = await self._look_for_trouble()
            if not self.trouble:
                await self._write()
                self._last_healthy = time.monotonic()
            await asyncio.sleep(_INTERVAL)

    async def forget(self) -> None:
        """Delete the record at the end of the worker, before it expires."""
        for name in self._names:
            await self._workers.forget_health(name, self._worker_id, arq_key=self._arq_key)

    async def _write(self) -> None:
        record = _as_arq_writes_it(self._snapshot())
        for names in self._broker.connections.together(self._names):
            await self._workers.record_health(names, self._worker_id, record, _LIFETIME, arq_key=self._arq_key)

    async def _look_for_trouble(self) -> str:
        """The reason why the worker cannot run jobs, or an empty text."""
        snapshot, now = self._snapshot(), time.monotonic()
        if snapshot.slots_are_held:
            return "jobs that have passed their timeout and do not end hold all slots"
        if now - self._last_failure <= _FRESH:
            return self._failure
        if not snapshot.last_claim:
            return NOT_YET
        if snapshot.is_claiming and now - snapshot.last_claim >= _FRESH:
            return "Redis does not answer its claims"
        if now - snapshot.last_beat >= _FRESH:
            return "leases are not renewed"
        if snapshot.standstill >= _STANDSTILL:
            return f"the ledger has taken no outcome for {snapshot.standstill:.0f} s"
        return "" if await self._database_answers() else "the database does not answer"

    async def _database_answers(self) -> bool:
        try:
            async with asyncio.timeout(_DATABASE_TIMEOUT):
                await self._ask_database()
        except Exception:  # noqa: BLE001 - any error means that the database does not answer
            return False
        return True


def _as_arq_writes_it(snapshot: HealthSnapshot) -> str:
    """The record in arq's form (0.28, ``worker.py``: `record_health`), without the depth of the queue at its end."""
    return (
        f"{datetime.now():%b-%d %H:%M:%S} j_complete={snapshot.done} j_failed={snapshot.failed} "  # noqa: DTZ005
        f"j_retried={snapshot.retried} j_ongoing={snapshot.running} queued="
    )

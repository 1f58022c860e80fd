"""``ReportSource``: describe this worker for its record: see `worker.metrics.records.WorkerReport`."""

import os
import platform
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from db.database import PoolUsage
from worker.broker.records import now_ms
from worker.config import Config
from worker.engine.claimer import Claimer
from worker.engine.draining import Draining
from worker.engine.execution import Phase
from worker.engine.executions import Executions
from worker.engine.executor import Executor
from worker.engine.health import Health
from worker.engine.heartbeat import Heartbeat
from worker.engine.job_log import JobLog
from worker.engine.relay import Relay
from worker.engine.slots import Slots
from worker.metrics.meter import Meter
from worker.metrics.process import ProcessSnapshot
from worker.metrics.records import WorkerState

_STARTING = 3000  # milliseconds: before that a worker has not been asked for its health often enough


@dataclass(frozen=True, slots=True)
class ReportSource:
    """The parts of an engine that its record describes."""

    config: Config
    executions: Executions
    slots: Slots
    log: JobLog
    heartbeat: Heartbeat
    claimer: Claimer
    draining: Draining
    health: Health
    pool: Callable[[], PoolUsage | None]
    meter: Meter
    executor: Executor
    relay: Relay | None
    started_at: int = field(default_factory=now_ms)
    process: str = field(default_factory=lambda: secrets.token_hex(8))
    """The id of this process, which no other one has."""

    def describe(self) -> dict[str, Any]:
        """The fields of the record, without the running jobs."""
        counts, pool, config = self.log.counts, self.pool(), self.config
        return {
            "id": config.id,
            "state": self.state,
            "why": self.health.trouble,
            "queues": config.queue_names,
            "host": platform.node(),
            "pid": os.getpid(),
            "version": _version(),
            "started_at": self.started_at,
            "slots": self.slots.total,
            "busy": self.slots.total - self.slots.free,
            "pool": None if pool is None else pool._asdict(),
            "loop_lag": round(self.heartbeat.lag, 4),
            "memory": psutil.Process().memory_info().rss,
            "done": counts["done"],
            "failed": counts["failed"],
            "retried": counts["retried"],
            "metrics_port": config.metrics_port,
        }

    def snapshot(self) -> ProcessSnapshot:
        """What the process's own Prometheus metrics say. Any thread may ask."""
        return ProcessSnapshot(
            slots=self.slots.total,
            busy=self.slots.total - self.slots.free,
            loop_lag=self.heartbeat.lag_now,
            pool=self.pool(),
            crashes=self.meter.crashes,
            leases_lost=self.meter.leases_lost + self.heartbeat.reacquired,
            conflict_reruns=self.executor.conflict_reruns,
            relay_published=0 if self.relay is None else self.relay.published,
        )

    @property
    def state(self) -> WorkerState:
        """What the worker does now."""
        if self.draining.has_begun:
            return WorkerState.DRAINING
        if self.health.trouble:
            is_new = now_ms() - self.started_at < _STARTING
            return WorkerState.STARTING if is_new else WorkerState.UNWELL
        if self.claimer.is_quiet:
            return WorkerState.QUIET
        return WorkerState.WORKING if self.claimer.last_answer else WorkerState.STARTING

    def running(self, queue: str) -> list[Sequence[Any]]:
        """The running jobs of a queue, as `RunningJob` has them."""
        return [
            (execution.job_id, execution.message.task, queue, execution.claim.tries + 1, execution.started_at)
            for execution in self.executions
            if execution.queue == queue and execution.phase is Phase.RUNNING
        ]


@cache
def _version() -> str:
    try:
        return version("tandem-jobs")
    except PackageNotFoundError:  # the packages were copied, not installed
        return ""

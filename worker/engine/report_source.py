"""``ReportSource``: describe this worker for its record: see `worker.metrics.records.WorkerReport`."""

import os
import platform
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import psutil

from db.database import PoolUsage
from worker.broker.records import now_ms
from worker.config import Config
from worker.engine.draining import Draining
from worker.engine.execution import Phase
from worker.engine.executor import Executor
from worker.engine.health import NOT_YET, Health
from worker.engine.job_flow import JobFlow
from worker.engine.relay import Relay
from worker.metrics.process import ProcessSnapshot
from worker.metrics.records import WorkerState


@dataclass(frozen=True, slots=True)
class ReportSource:
    """The parts of an engine that its record describes."""

    config: Config
    jobs: JobFlow
    draining: Draining
    health: Health
    pool: Callable[[], PoolUsage | None]
    executor: Executor
    relay: Relay | None
    started_at: int = field(default_factory=now_ms)
    process: str = field(default_factory=lambda: secrets.token_hex(8))
    """The id of this process, which no other one has."""

    def describe(self) -> dict[str, Any]:
        """The fields of the record, without the running jobs."""
        jobs, config, pool = self.jobs, self.config, self.pool()
        counts = jobs.log.counts
        return {
            "id": config.id,
            "state": self.state,
            "why": self.health.trouble if self.state is WorkerState.UNWELL else "",
            "queues": config.queue_names,
            "host": platform.node(),
            "pid": os.getpid(),
            "version": _version(),
            "started_at": self.started_at,
            "slots": jobs.slots.total,
            "busy": jobs.slots.total - jobs.slots.free,
            "pool": None if pool is None else pool._asdict(),
            "last_healthy": None if self.health.last_healthy is None else round(self.health.last_healthy, 3),
            "last_heartbeat": round(time.monotonic() - jobs.heartbeat.last_beat, 3),
            "loop_lag": round(jobs.heartbeat.lag, 4),
            "memory": psutil.Process().memory_info().rss,
            "done": counts["done"],
            "failed": counts["failed"],
            "retried": counts["retried"],
            "metrics_port": config.metrics_port,
        }

    def snapshot(self) -> ProcessSnapshot:
        """What the process's own Prometheus metrics say. Any thread may ask."""
        jobs = self.jobs
        return ProcessSnapshot(
            slots=jobs.slots.total,
            busy=jobs.slots.total - jobs.slots.free,
            loop_lag=jobs.heartbeat.lag_now,
            pool=self.pool(),
            crashes=jobs.meter.crashes,
            leases_lost=jobs.meter.leases_lost + jobs.heartbeat.reacquired,
            conflict_reruns=self.executor.conflict_reruns,
            relay_published=0 if self.relay is None else self.relay.published,
        )

    @property
    def state(self) -> WorkerState:
        """What the worker does now."""
        if self.draining.has_begun:
            return WorkerState.DRAINING
        if self.health.trouble == NOT_YET:
            return WorkerState.STARTING
        if self.health.trouble:
            return WorkerState.UNWELL
        return WorkerState.QUIET if self.jobs.claimer.is_quiet else WorkerState.WORKING

    def running(self) -> dict[str, list[Sequence[Any]]]:
        """The running jobs by queue, as `RunningJob` has them."""
        running: dict[str, list[Sequence[Any]]] = {}
        for each in self.jobs.executions:
            if each.phase is Phase.RUNNING:
                fields = (each.job_id, each.message.task, each.queue, each.claim.tries + 1, each.started_at)
                running.setdefault(each.queue, []).append(fields)
        return running


@cache
def _version() -> str:
    try:
        return version("tandem-jobs")
    except PackageNotFoundError:  # the packages were copied, not installed
        return ""

"""Reports of workers, as if the workers ran."""

from collections.abc import Sequence
from typing import Any

from worker import Broker
from worker.broker.metrics import MetricsStore
from worker.broker.records import now_ms
from worker.metrics.records import encode_report


async def report(
    broker: Broker, worker_id: str, queues: Sequence[str], jobs: Sequence[tuple[Any, ...]] = (), **fields: Any
) -> None:
    """Write the report of a worker that is healthy for a minute, to each of its queues.

    Args:
        jobs: its running jobs, with the fields of `RunningJob`.
        fields: other fields of `WorkerReport` than these.
    """
    healthy = {
        "id": worker_id,
        "state": "working",
        "why": "",
        "queues": queues,
        "version": "1.0",
        "started_at": now_ms(),
        "pool": None,
        "last_healthy": -56.0,  # a command may take seconds to start
        "last_heartbeat": 0.0,
    }
    record = encode_report(healthy | fields, jobs)
    await MetricsStore(broker.connections).add_record(queues, f"process of {worker_id}", record)

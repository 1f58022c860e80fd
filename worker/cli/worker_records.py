"""The health records that workers write every second: see `worker.engine.health`."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.broker.broker import Broker
from worker.broker.worker_records import WorkerRecords


class WorkerRecord(BaseModel):
    """The record of a healthy worker, a few seconds old at most."""

    model_config = ConfigDict(extra="allow")  # workers of later versions may write more fields

    queued: dict[str, int]
    """Jobs that wait or run, for each queue."""
    running: int
    """Jobs that this worker runs."""
    done: int
    failed: int
    retried: int
    loop_lag: float
    """Seconds that the worker's event loop took to answer."""
    last_heartbeat: float
    """Seconds since the worker last renewed its leases, at the time of the record."""
    redis: str
    database: str


async def read_worker_records(broker: Broker, names: Sequence[str]) -> dict[str, WorkerRecord]:
    """Read the records of the workers that serve at least one of these queues, by worker id.

    Raises:
        RedisError, OSError: Redis does not answer.
    """
    workers, records = WorkerRecords(broker.connections), {}
    for name in names:
        for worker_id, record in (await workers.health_records(name)).items():
            try:
                records[worker_id] = WorkerRecord.model_validate_json(record)
            except ValidationError:
                continue  # written by other software
    return dict(sorted(records.items()))

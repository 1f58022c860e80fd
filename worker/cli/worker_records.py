"""The workers of a queue, by the records that they write of themselves every second: see `worker.engine.health`."""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, ValidationError

from worker.broker.broker import Broker
from worker.broker.worker_records import WorkerRecords


class WorkerRecord(BaseModel):
    """What a worker that is well says of itself. It is a few seconds old at most."""

    model_config = ConfigDict(extra="allow")  # a worker of the next version may say more

    queued: dict[str, int]
    """Jobs that wait or run, by queue."""
    running: int
    """Jobs that this worker runs."""
    done: int
    failed: int
    retried: int
    loop_lag: float
    """Seconds that its event loop took to answer."""
    last_heartbeat: float
    """Seconds since it last renewed its leases, when it wrote the record."""
    redis: str
    database: str


async def fleet(broker: Broker, names: Sequence[str]) -> dict[str, WorkerRecord]:
    """The workers that serve at least one of these queues, by id.

    Raises:
        RedisError, OSError: Redis does not answer.
    """
    workers, records = WorkerRecords(broker.connections), {}
    for name in names:
        for worker_id, record in (await workers.health_records(name)).items():
            try:
                records[worker_id] = WorkerRecord.model_validate_json(record)
            except ValidationError:
                continue  # written by something else
    return dict(sorted(records.items()))

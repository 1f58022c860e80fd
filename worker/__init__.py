"""Background jobs: declare tasks, enqueue jobs, run workers.

::

    @task(timeout=30)
    async def send_receipt(session: AsyncSession, order_id: int) -> None: ...

    await send_receipt.enqueue(order_id=7)

``arq worker.Settings`` starts a worker. `Settings` is made at its first access, because it imports every task, and
every task imports this package.

Web processes, workers and tasks import it. No code of a particular task may be put here.
"""

from typing import Any

from worker import siblings as _siblings  # noqa: F401 - the import is the check for a foreign package named db

# isort: split
from db.text.log_records import keep_printable
from worker.broker.broker import Broker, default_broker, set_default_broker
from worker.broker.records import JobStatus
from worker.context import JobContext, Progress, Resource, current_job, injected
from worker.cron import cron
from worker.errors import JobFailed, Retry, WorkerError
from worker.job import Job, JobInfo
from worker.message import deserialize, serialize
from worker.task import Task, task

__all__ = [
    "Broker",
    "Job",
    "JobContext",
    "JobFailed",
    "JobInfo",
    "JobStatus",
    "Progress",
    "Queue",
    "Resource",
    "Retry",
    "Task",
    "WorkerError",
    "cron",
    "current_job",
    "default_broker",
    "default_queue",
    "deserialize",
    "injected",
    "serialize",
    "set_default_broker",
    "set_default_queue",
    "task",
]


keep_printable("worker")

# Deprecated names, from before version 0.2.
Queue, default_queue, set_default_queue = Broker, default_broker, set_default_broker


def __getattr__(name: str) -> Any:
    if name != "Settings":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from worker.arq_host.command import leave_on_signal_meanwhile  # noqa: PLC0415 - arq and its command

    leave_on_signal_meanwhile()
    from worker.settings import resolve  # noqa: PLC0415 - imports the engine and every task

    return resolve()

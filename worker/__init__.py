"""Background jobs: declare tasks, enqueue jobs, run workers.

::

    @task(timeout=30)
    async def send_receipt(session: AsyncSession, order_id: int) -> None: ...

    await send_receipt.enqueue(order_id=7)

``arq worker.Settings`` starts a worker. `Settings` is made at its first access, because it imports every task, and
every task imports this package. The other names are imported at their first access, so that the command line shows its
help without SQLAlchemy.

Web processes, workers and tasks import it. No code of a particular task may be put here.
"""

import logging
import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from worker import siblings as _siblings  # noqa: F401 - the import is the check for a foreign package named db

if TYPE_CHECKING:
    from worker.broker.broker import Broker, default_broker, set_default_broker
    from worker.broker.broker import Broker as Queue
    from worker.broker.broker import default_broker as default_queue
    from worker.broker.broker import set_default_broker as set_default_queue
    from worker.broker.records import JobStatus
    from worker.client.chunk import Chunk
    from worker.context import JobContext, Progress, Resource, current_job, injected
    from worker.cron import cron
    from worker.errors import JobFailed, Retry, WorkerError
    from worker.job import Job, JobInfo
    from worker.message import deserialize, serialize
    from worker.task import Task, task

__all__ = [
    "Broker",
    "Chunk",
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

_MODULES = {
    "Broker": "worker.broker.broker",
    "Chunk": "worker.client.chunk",
    "Job": "worker.job",
    "JobContext": "worker.context",
    "JobFailed": "worker.errors",
    "JobInfo": "worker.job",
    "JobStatus": "worker.broker.records",
    "Progress": "worker.context",
    "Resource": "worker.context",
    "Retry": "worker.errors",
    "Task": "worker.task",
    "WorkerError": "worker.errors",
    "cron": "worker.cron",
    "current_job": "worker.context",
    "default_broker": "worker.broker.broker",
    "deserialize": "worker.message",
    "injected": "worker.context",
    "serialize": "worker.message",
    "set_default_broker": "worker.broker.broker",
    "task": "worker.task",
}
"""The module of each public name. It is imported at the first access of the name."""

_DEPRECATED = {"Queue": "Broker", "default_queue": "default_broker", "set_default_queue": "set_default_broker"}
"""Names from before version 0.2, and their names of today."""


class _Package(ModuleType):
    """This package. Two of its modules share the name of a function that it exports: the function has the name.

    Python sets a module as an attribute of its package at the end of the module's import.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name == "Settings":
        return _settings()
    current = _DEPRECATED.get(name, name)
    if current not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[current]), current)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _settings() -> Any:
    from worker.process.gc_tuning import rare_collections  # noqa: PLC0415 - what follows is for workers only

    with rare_collections():
        from worker.arq_host.command import leave_on_signal_meanwhile  # noqa: PLC0415 - arq and its command

        leave_on_signal_meanwhile()
        from worker.settings import resolve  # noqa: PLC0415 - imports the engine and every task

        return resolve()


def _make_printable(record: logging.LogRecord) -> bool:
    from db.text.log_records import make_printable  # noqa: PLC0415 - db imports SQLAlchemy

    return make_printable(record)


logging.getLogger("worker").addFilter(_make_printable)

"""What a running job knows of itself, and how it asks for resources."""

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from worker.errors import WorkerError


@dataclass(slots=True, eq=False)  # not frozen, as making it would cost every job five times as much
class JobContext:
    """The job that is running: injected by annotation, or asked of `current_job()`. For reading only."""

    job_id: str
    task: str
    """The task's name."""
    queue: str
    attempt: int
    """Which try this is, from 1: one more than those that failed."""
    enqueued_at: datetime
    """When it was enqueued, in UTC."""
    previous: int = 0
    """How often it was started before, as far as anybody knows: by tries that failed, and by workers that died. What
    it did outside the database then, it may be about to do again."""
    score: int = 0
    """When it was due, in milliseconds since the epoch."""
    resources: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What the registry's lifespan yielded, by name."""


@dataclass(frozen=True, slots=True)
class Resource:
    """Marks a parameter as a resource of the worker: ``client: Annotated[AsyncClient, Resource("http")]``."""

    name: str


injected: Any = object()
"""A default for injected parameters, so that type checkers do not ask the caller for them."""

_running: ContextVar[JobContext] = ContextVar("worker.job")


def current_job() -> JobContext:
    """The job that runs here.

    Raises:
        WorkerError: no job runs here.
    """
    job = _running.get(None)
    if job is None:
        raise WorkerError("no job runs here: current_job() is for code that a task calls")
    return job


def enter_job(job: JobContext) -> None:
    """Make `job` the current one, in this asyncio task and what it starts."""
    _running.set(job)


def from_milliseconds(milliseconds: int) -> datetime:
    """A time on the wire as a datetime in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)

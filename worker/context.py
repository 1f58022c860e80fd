"""`JobContext`, which describes the running job to its task, and `Resource`, which injects a resource."""

from collections.abc import Awaitable, Callable, Generator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from worker.errors import WorkerError


class Progress(NamedTuple):
    """How far a job is, as its task has reported it.

    ::

        async for progress in job.progress():
            print(progress.done, progress.total, progress.note)
    """

    done: float
    total: float | None
    """None: the task does not know."""
    note: str
    attempt: int
    """The number of the try that has reported it."""
    at: datetime
    """When it was reported, in UTC by the worker's clock."""


class _NextTurn:
    """An awaitable that lets other tasks of the event loop run once."""

    def __await__(self) -> Generator[None, None, None]:
        yield


_NEXT_TURN = _NextTurn()


@dataclass(slots=True, eq=False)  # not frozen: a frozen one takes five times as long to make, for every job
class JobContext:
    """The running job, injected by annotation or returned by `current_job()`. For reading only.

    ::

        @task
        async def ship(session: AsyncSession, job: JobContext, order_id: int) -> None:
            print(job.job_id, job.attempt)
    """

    job_id: str
    task: str
    """The task's name."""
    queue: str
    attempt: int
    """The number of this try, from 1."""
    enqueued_ms: int
    """The enqueue time, in milliseconds since the epoch."""
    previous: int = 0
    """Earlier starts of the job that are known: tries that failed, and crashes. Effects of these starts outside the
    database may happen again now."""
    score: int = 0
    """The due time, in milliseconds since the epoch."""
    resources: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """The resources that the registry's lifespan yielded, by name."""
    parent: str | None = None
    """The id of the job that enqueued this one."""
    traceparent: str | None = None
    """The trace and span that the job was enqueued in, as W3C Trace Context writes them."""
    send_progress: "Callable[[JobContext, float, float | None, str], None] | None" = field(default=None, repr=False)
    """Takes what `progress` reports. Set by the worker."""

    @property
    def enqueued_at(self) -> datetime:
        """The enqueue time, in UTC."""
        return from_milliseconds(self.enqueued_ms)

    def progress(self, done: float, total: float | None = None, note: str = "") -> Awaitable[None]:
        """Report how far the job is: ``await job.progress(done, total, "importing")``.

        `Job.info` and `Job.progress` show it at once. Call it as often as you like: the latest report goes out at most
        once every half a second, in the background. A plain function calls it without ``await``.

        Args:
            done: how much is done.
            total: how much there is to do (default: not known).
            note: what the job does now.
        """
        if self.send_progress is not None:
            self.send_progress(self, done, total, note)
        return _NEXT_TURN


@dataclass(frozen=True, slots=True)
class Resource:
    """Marks a parameter as a resource of the worker: ``client: Annotated[AsyncClient, Resource("http")]``.

    ::

        @task
        async def ship(client: Annotated[AsyncClient, Resource("http")] = injected) -> None:
            await client.post("/parcels")
    """

    name: str


injected: Any = object()
"""The default of an injected parameter, so that type checkers accept a call without it."""

_running: ContextVar[JobContext] = ContextVar("worker.job")


def current_job() -> JobContext:
    """The job that the calling code is part of.

    ::

        def log_order(order_id: int) -> None:  # called by a task, however deep
            logger.info("order %d, job %s", order_id, current_job().job_id)

    Raises:
        WorkerError: the calling code is not part of a job.
    """
    job = _running.get(None)
    if job is None:
        raise WorkerError("no job runs here: call current_job() in a task, or in code that a task calls")
    return job


def running_job() -> JobContext | None:
    """The job that the calling code is part of, or None."""
    return _running.get(None)


def enter_job(job: JobContext) -> None:
    """Make `job` the current job of this asyncio task and its child tasks."""
    _running.set(job)


_came_as_pickle: ContextVar[bool] = ContextVar("worker.came_as_pickle", default=False)


def enter_pickled_job() -> None:
    """Note that the current job came as a pickle. Only such a job calls it."""
    _came_as_pickle.set(True)


def came_as_pickle() -> bool:
    """Whether the current job came as a pickle, or no job runs."""
    return _came_as_pickle.get() or _running.get(None) is None


def from_milliseconds(milliseconds: int) -> datetime:
    """Convert a time on the wire to a datetime in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)

"""``Wanted``: the jobs that a test looks for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from worker.errors import WorkerError
from worker.task import Task
from worker.testing.matching import matches
from worker.testing.records import EnqueuedJob

_A_MILLISECOND = 0.0015  # seconds; what travels is rounded to milliseconds


@dataclass(frozen=True)
class Wanted:
    """What a test looks for. None, or nothing, is any."""

    task: Task[..., Any] | None
    queue: str | None
    arguments: Mapping[str, Any]
    delay: float | None
    at: datetime | None
    job_id: str | None

    @classmethod
    def of(
        cls,
        task: Task[..., Any] | None,
        queue: str | None,
        arguments: Mapping[str, Any],
        *,
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        job_id: str | None = None,
    ) -> "Wanted":
        """Check the names of the arguments. Raises :class:`WorkerError` for one that the task does not have."""
        if task is None and arguments:
            raise WorkerError("arguments are those of a task: name the task as well")
        given = {"queue": queue, "delay": delay, "at": at, "job_id": job_id}
        for name, value in given.items():
            if value is not None and task is not None and name in task.signature.payload:
                raise WorkerError(
                    f"{name} is an option here, and a parameter of {task.name}: write args={{{name!r}: ...}} for the "
                    "parameter. For the option, look at the jobs that enqueued() returns"
                )
        if task is not None and (unknown := sorted(arguments.keys() - task.signature.payload.keys())):
            raise WorkerError(f"{task.name}{task.signature.text} has no parameter {', '.join(unknown)}")
        seconds = delay.total_seconds() if isinstance(delay, timedelta) else delay
        return cls(task, queue, arguments, seconds, at, job_id)

    def is_met_by(self, job: EnqueuedJob) -> bool:
        return (
            (self.task is None or job.task == self.task.name)
            and self.queue in (None, job.queue)
            and self.job_id in (None, job.id)
            and (self.delay is None or abs(job.delay - self.delay) < _A_MILLISECOND)
            and (self.at is None or abs((job.due - self.at).total_seconds()) < _A_MILLISECOND)
            and matches(self.arguments, job.args)
        )

    def __str__(self) -> str:
        name = "any task" if self.task is None else self.task.name
        text = f"{name}({', '.join(f'{name}={_shown(value)}' for name, value in self.arguments.items())})"
        options = {"queue": self.queue, "delay": self.delay, "at": self.at, "job_id": self.job_id}
        return ", ".join([text, *(f"{name}={value}" for name, value in options.items() if value is not None)])


def _shown(value: Any) -> str:
    if value is ...:
        return "..."
    return getattr(value, "__name__", repr(value)) if isinstance(value, Callable) else repr(value)  # type: ignore[arg-type]

"""``ScheduleAdmin``: list scheduled tasks with their cron slots, run one now, pause and resume one."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.admin.deployment import Deployment
from worker.admin.queues import Pause
from worker.job import Job
from worker.task import Task


@dataclass(frozen=True, slots=True)
class CronSlotRun:
    """A cron slot that has passed, and how its job went."""

    at: datetime
    job_id: str
    state: str
    """The state of its job row: pending, done, failed, aborted, discarded or expired."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ScheduleInfo:
    """A scheduled task."""

    task: str
    queue: str
    expression: str
    timezone: str
    description: str
    """The schedule in words."""
    next_slots: tuple[datetime, ...]
    """The next slots, by this machine's clock. They are skipped while the schedule is paused."""
    last_slots: tuple[CronSlotRun, ...]
    """The last slots that were queued, the latest first."""
    pause: Pause | None = None


class ScheduleAdmin:
    """The scheduled tasks of a registry.

    Args:
        tasks: the tasks by name, as `worker.registry.load` returns them. Tasks without a schedule are left out.
        deployment: where their jobs are (default: the servers of this process).
    """

    def __init__(self, tasks: Mapping[str, Task[..., Any]], deployment: Deployment | None = None) -> None:
        self._tasks = {name: task for name, task in tasks.items() if task.schedule is not None}
        self._deployment = deployment or Deployment.of_process()

    async def list(self, *, upcoming: int = 3, past: int = 5) -> list[ScheduleInfo]:
        """All scheduled tasks, with this many next and last slots each."""
        raise NotImplementedError

    async def run_now(self, task: str, *, actor: str) -> Job[Any]:
        """Enqueue a job of a scheduled task, besides its slots. Allowed while the schedule is paused.

        Raises:
            KeyError: there is no such scheduled task.
        """
        raise NotImplementedError

    async def pause(self, task: str, *, actor: str, until: datetime | None = None) -> Pause:
        """Queue no more slots of a task. Slots that pass meanwhile are skipped, whatever its misfire policy is.

        Raises:
            KeyError: there is no such scheduled task.
            ValueError: `until` has no time zone, or is not in the future.
        """
        raise NotImplementedError

    async def resume(self, task: str, *, actor: str) -> bool:
        """Queue slots again, from the next one on. False if the schedule was not paused."""
        raise NotImplementedError

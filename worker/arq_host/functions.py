"""`tasks_of`: tasks of the functions and cron jobs in a project's arq settings."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import tzinfo
from typing import Any

from arq.cron import CronJob
from arq.worker import Function, func

from worker.cron import from_arq, merge_schedules
from worker.errors import TaskDefinitionError
from worker.task import Task

_Read = Callable[[Any], Function | CronJob]
_Entry = tuple[str, _Read, Any]
"""Where it stands, how it is read, and what stands there."""


class ResultDefaults:
    """How long results are kept where a function does not say.

    Args:
        seconds: arq's ``keep_result``.
        forever: arq's ``keep_result_forever``.
    """

    def __init__(self, seconds: float, *, forever: bool) -> None:
        self._seconds = seconds
        self._forever = forever

    def fill_in(self, job: Any) -> Any:
        """A function or cron job that needs no ``keep_result_forever`` of the worker's."""
        forever = self._forever if job.keep_result_forever is None else job.keep_result_forever
        seconds = self._seconds if job.keep_result_s is None and self._forever else job.keep_result_s
        return replace(job, keep_result_forever=forever, keep_result_s=seconds)


def tasks_of(
    functions: Sequence[Any],
    cron_jobs: Sequence[Any],
    keep_result: ResultDefaults,
    timezone: tzinfo | None,
    refuse: Callable[[str], None],
) -> dict[str, Task[Any, Any]]:
    """The tasks by name. As in arq, the last one of a name counts, and has the schedules of all of its function's.

    Args:
        functions: what arq's ``func()`` takes, its results, and Tandem's own tasks.
        cron_jobs: results of arq's ``cron()``.
        keep_result: for functions that do not say how long a result is kept.
        timezone: arq's setting, for the cron jobs.
        refuse: gets a line for each entry that cannot be a task.
    """
    tasks: list[Task[Any, Any]] = []
    entries: list[_Entry] = [(f"functions[{number}]", _function, entry) for number, entry in enumerate(functions)]
    entries += [(f"cron_jobs[{number}]", _cron_job, entry) for number, entry in enumerate(cron_jobs)]
    for place, read, entry in entries:
        try:
            task = _task(entry, read, keep_result, timezone)
            _require_same_function(task, tasks)
        except TaskDefinitionError as error:
            refuse(f"{place}: {error}")
        else:
            tasks.append(task)
    return {task.name: task for task in merge_schedules(tasks)}


def _task(entry: Any, read: _Read, keep_result: ResultDefaults, timezone: tzinfo | None) -> Task[Any, Any]:
    task = entry if isinstance(entry, Task) else from_arq(keep_result.fill_in(read(entry)), timezone=timezone)
    task.check()
    return task


def _require_same_function(task: Task[Any, Any], earlier: Sequence[Task[Any, Any]]) -> None:
    """Check that no other function has the name of a scheduled one. arq would run the last one on both schedules."""
    for other in earlier:
        if other.name == task.name and other.fn is not task.fn and (other.schedules or task.schedules):
            raise TaskDefinitionError(f"another function is called {task.name!r}, too: write cron(..., name='other')")


def _cron_job(entry: Any) -> CronJob:
    if not isinstance(entry, CronJob):
        raise TaskDefinitionError(f"{_shown(entry)} is not what arq's cron() returns")
    return entry


def _function(entry: Any) -> Function:
    try:
        return func(entry)
    except AttributeError:  # a partial, or an object
        raise TaskDefinitionError(f"{_shown(entry)} has no name: write func(..., name='name')") from None
    except RuntimeError:
        raise TaskDefinitionError(
            f"{_shown(entry)} is not a coroutine function: write async def, or @task, which calls it in a thread"
        ) from None
    except ImportError as error:
        raise TaskDefinitionError(f"{entry!r} cannot be imported: {error}") from None


def _shown(entry: Any) -> str:
    return getattr(entry, "__qualname__", None) or repr(entry)

"""The output of ``python -m worker check``: the tasks of a registry, or its problems."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from rich.text import Text

from db.text.plural import plural
from worker.cli.output import printable_text
from worker.client.schedule import Schedule
from worker.client.signature import Injected, InjectedArqContext, InjectedContext, InjectedSession
from worker.config import Config
from worker.context import Resource
from worker.errors import RegistryError
from worker.registry import Registry
from worker.registry.imports import shown
from worker.task import Task


def describe_problems(registry: str, error: RegistryError) -> Iterator[Text]:
    """A heading, then a line for each problem."""
    yield printable_text(f"{registry}: {plural(len(error.problems), 'problem')}", style="bold red")
    for problem in error.problems:
        yield printable_text(f"- {problem}")


def describe_tasks(registry: Registry, config: Config) -> Iterator[Text]:
    """A heading, then a paragraph for each task."""
    yield printable_text(f"{registry.module} ({shown(registry.file)}): {plural(len(registry.tasks), 'task')}")
    for task in registry.tasks.values():
        yield Text()
        yield printable_text((task.name, "bold cyan"), f"  {shown(task.file)}:{task.line}")
        for label, value in _properties(task, config).items():
            yield printable_text((f"  {label:<9}", "dim"), value)


def _properties(task: Task[Any, Any], config: Config) -> dict[str, str]:
    shown_as = {"payload": task.signature_text, "queue": task.options.queue or config.queue}
    if task.injected:
        shown_as["injected"] = ", ".join(f"{name}: {_describe(what)}" for name, what in task.injected.items())
    if task.schedules:
        shown_as["schedule"] = "; ".join(map(_describe_schedule, task.schedules))
    return shown_as


def _describe(injected: Injected) -> str:
    match injected:
        case InjectedSession(database, sync):
            kind = "Session" if sync else "AsyncSession"
            return kind if database is None else f"{kind} of {database.name}"
        case InjectedContext():
            return "JobContext"
        case InjectedArqContext():
            return "arq's context"
        case Resource(name):
            return f"resource {name}"


def _describe_schedule(schedule: Schedule) -> str:
    described = f"{schedule.describe()}, next at {schedule.next_after(datetime.now(UTC)):%Y-%m-%d %H:%M:%S} UTC"
    if schedule.job_id is not None:
        return f"{described}, not while job {schedule.job_id} waits or runs"
    return described if schedule.unique else f"{described}, a job for each worker"

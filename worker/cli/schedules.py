"""``tandem schedules``: list scheduled tasks, run one now, pause and resume one."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, TypeVar

import typer
from pydantic_core import to_json
from rich.table import Table

from worker.admin.schedules import ScheduleAdmin, ScheduleInfo
from worker.cli.deployment import actor, with_deployment
from worker.cli.output import FAILED, MISTAKE, explain, printable_text, wide_out
from worker.cli.times import parse_until, relative
from worker.config import Config
from worker.errors import ConfigError
from worker.registry import load

T = TypeVar("T")

app = typer.Typer(help="List, run, pause and resume schedules.", add_completion=False)

TaskName = Annotated[str, typer.Argument(metavar="TASK", help="Name of the scheduled task.")]

_STYLES = {"done": "green", "failed": "red", "pending": "cyan"}


@app.callback(invoke_without_command=True)
def _commands(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        context.get_help()  # it prints the help
        raise typer.Exit(MISTAKE)


@app.command("list")
def show_list(*, json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> int:
    """Show the scheduled tasks, their next runs, and how the last ones went."""
    schedules = _with_schedules(lambda admin: admin.list())
    if json:
        typer.echo(to_json(schedules))
    elif schedules:
        wide_out().print(_table(schedules))
    else:
        typer.echo("the registry has no scheduled task")
    return 0


@app.command()
def run(task: TaskName) -> int:
    """Enqueue a job of a scheduled task now, besides its slots. Print the job's id."""
    job: Any = _with_schedules(lambda admin: admin.run_now(task, actor=actor()), task)
    typer.echo(job.job_id)
    return 0


@app.command()
def pause(
    task: TaskName,
    *,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="When it goes on by itself: 30m, 2h, or a time with its zone.")
    ] = None,
) -> int:
    """Queue no more runs of a task. Runs that would fall into the pause are skipped."""
    end = None if until is None else parse_until(until)
    paused = _with_schedules(lambda admin: admin.pause(task, actor=actor(), until=end), task)
    rest = f" until {paused.until:%Y-%m-%d %H:%M:%S %Z}" if paused.until else f": tandem schedules resume {task}"
    typer.echo(f"{task} is paused{rest}")
    return 0


@app.command()
def resume(task: TaskName) -> int:
    """Queue runs of a task again, from the next one on."""
    if not _with_schedules(lambda admin: admin.resume(task, actor=actor()), task):
        return explain(f"{task} is not paused; 'tandem schedules list' shows which schedules are", FAILED)
    typer.echo(f"{task} runs again on schedule")
    return 0


def _with_schedules(act: Callable[[ScheduleAdmin], Awaitable[T]], task: str | None = None) -> T:
    """Return what `act` returns for the schedules of the registry.

    Raises:
        ConfigError: the registry has no scheduled task of this name.
    """
    config = Config.load()
    tasks = load(config.registry).tasks
    if task is not None and (task not in tasks or tasks[task].schedule is None):
        raise ConfigError(f"{task}: the registry has no such scheduled task; 'tandem schedules list' shows them")
    return with_deployment(lambda deployment: act(ScheduleAdmin(tasks, deployment)), config)


def _table(schedules: Sequence[ScheduleInfo]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("task", "schedule", "queue", "next", "last"):
        table.add_column(column, overflow="fold")
    for schedule in schedules:
        next_run = relative(schedule.next_slots[0]) if schedule.next_slots else "never"
        if (pause := schedule.pause) is not None:
            next_run = f"paused by {pause.actor}" + (f", ends {relative(pause.until)}" if pause.until else "")
        last = schedule.last_slots[0] if schedule.last_slots else None
        table.add_row(
            printable_text(schedule.task),
            printable_text(schedule.description),
            printable_text(schedule.queue),
            printable_text(next_run, style="yellow" if pause else ""),
            printable_text(
                "" if last is None else f"{last.state} {relative(last.at)}",
                style="" if last is None else _STYLES.get(last.state, ""),
            ),
        )
    return table

"""The command line: `python -m worker`.

A command returns, or says in a line what is wrong: exit code 2 for a setting, 1 for anything else.
"""

import sys
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from worker.config import Config
from worker.context import Resource
from worker.errors import ConfigError, RegistryError
from worker.imports import shown
from worker.registry import Registry, load
from worker.schedule import Schedule
from worker.signature import Injected, InjectedArqContext, InjectedContext, InjectedSession
from worker.task import Task

__all__ = ["main"]

app = typer.Typer(
    help="Tandem: background jobs with a session lifecycle. `arq worker.Settings` runs them.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
_out = Console(highlight=False, soft_wrap=True)
_err = Console(highlight=False, soft_wrap=True, stderr=True)


def main() -> None:
    """Run the command that the process was started with."""
    try:
        app(prog_name="python -m worker")
    except ConfigError as error:
        _err.print(Text(str(error), style="red"))
        sys.exit(2)


@app.callback()
def _commands() -> None:
    """Makes typer ask for a command, also while there is only one."""


@app.command()
def check(
    registry: Annotated[
        str | None,
        typer.Option(metavar="MODULE", help="The module that lists the tasks. Default: WORKER_REGISTRY."),
    ] = None,
) -> None:
    """Import every task and show it, or show everything that is wrong."""
    config = Config.load() if registry is None else Config.load(registry=registry)
    for typo in Config.likely_typos():
        _err.print(Text(typo, style="yellow"))
    try:
        loaded = load(config.registry)
    except RegistryError as error:
        _show_problems(config.registry, error)
        raise typer.Exit(1) from None
    _show_registry(loaded, config)


def _show_problems(registry: str, error: RegistryError) -> None:
    _err.print(Text(f"{registry}: {_count(len(error.problems), 'problem')}", style="bold red"))
    for problem in error.problems:
        _err.print(Text(f"- {problem}"))


def _show_registry(registry: Registry, config: Config) -> None:
    _out.print(Text(f"{registry.module} ({shown(registry.file)}): {_count(len(registry.tasks), 'task')}"))
    for task in registry.tasks.values():
        _show_task(task, config)


def _show_task(task: Task[Any, Any], config: Config) -> None:
    _out.print()
    _out.print(Text.assemble((task.name, "bold cyan"), f"  {shown(task.file)}:{task.line}"))
    for label, value in _properties(task, config).items():
        _out.print(Text.assemble((f"  {label:<9}", "dim"), value))


def _properties(task: Task[Any, Any], config: Config) -> dict[str, str]:
    shown_as = {"payload": task.signature_text, "queue": task.options.queue or config.queue}
    if task.injected:
        shown_as["injected"] = ", ".join(f"{name}: {_describe(what)}" for name, what in task.injected.items())
    if task.schedule is not None:
        shown_as["schedule"] = _when(task.schedule)
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


def _when(schedule: Schedule) -> str:
    return f"{schedule.describe()}, next at {schedule.next_after(datetime.now(UTC)):%Y-%m-%d %H:%M:%S} UTC"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

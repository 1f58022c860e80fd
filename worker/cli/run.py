"""``tandem run``: workers without arq's command."""

import os
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from worker.cli.child_process import ParentLink
from worker.cli.options import Queues
from worker.cli.output import err
from worker.cli.program import PROGRAM
from worker.cli.supervisor import supervise
from worker.cli.typos import warn_of_typos
from worker.config import Config
from worker.embedded.local_servers import alembic_message, await_alembic, local_servers, message
from worker.errors import ConfigError
from worker.process.standalone import work
from worker.process.stop_signals import leave_on_signal


class Under(StrEnum):
    """The kind of parent process that started this one."""

    SUPERVISOR = "supervisor"
    WATCH = "watch"


def run(
    processes: Annotated[int, typer.Option(metavar="N", min=1, max=1000, help="Number of worker processes.")] = 1,
    queues: Queues = None,
    concurrency: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Jobs that each process runs at once. Default: WORKER_CONCURRENCY."),
    ] = None,
    burst: Annotated[bool, typer.Option("--burst", help="End when all queues are empty and no job runs.")] = False,
    watch: Annotated[
        bool, typer.Option("--watch", help="Drain and restart when a Python file in DIR changes.")
    ] = False,
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", exists=True, file_okay=False, help="Folder to watch. Default: current folder."),
    ] = None,
    under: Annotated[Under | None, typer.Option(hidden=True)] = None,
) -> int:
    """Run workers without arq's command.

    SIGTERM or Ctrl-C lets running jobs finish for WORKER_GRACE seconds. A second signal interrupts them.

    If DATABASE_URL or REDIS_URL is not set, this command starts an empty server for as long as it runs.

    The exit code is 0 after an orderly end, 1 after a failure, and 2 after a mistake in a setting or a task.
    With --burst it is 0 only if the queues were empty.
    """
    _check_watch(watch=watch, folder=folder)
    leave_on_signal(until_empty=burst)
    parent = None if under is None else ParentLink()
    _set_for_children(WORKER_QUEUES=queues, WORKER_CONCURRENCY=concurrency)
    config = Config.load()
    if parent is None:
        warn_of_typos()
    else:
        parent.follow(config.grace)
    with local_servers(config) as urls:
        if (note := message(config)) is not None:
            err.print(Text(note))
        if (note := alembic_message(config)) is not None:
            err.print(Text(note))
            await_alembic(config, urls)
        _set_for_children(DATABASE_URL=urls.database, REDIS_URL=urls.redis)
        config = Config.load()
        if watch:
            return _watch(folder or Path(), processes, burst=burst)
        if processes > 1:
            return supervise(config, processes, until_empty=burst)
        return work(
            config,
            until_empty=burst,
            log_as=config.id if under is Under.SUPERVISOR else None,
            started=None if parent is None else parent.report_started,
        )


def _check_watch(*, watch: bool, folder: Path | None) -> None:
    if folder is not None and not watch:
        raise ConfigError(f"DIR needs --watch. Example: {PROGRAM} run --watch {folder}")
    if watch and find_spec("watchfiles") is None:
        raise ConfigError("--watch needs the package watchfiles: pip install 'tandem-jobs[watch]'")


def _watch(folder: Path, processes: int, *, burst: bool) -> int:
    from worker.cli.watch import watch  # noqa: PLC0415 - watchfiles need not be installed

    until_empty = ["--burst"] if burst else []
    return watch(folder, ["run", f"--under={Under.WATCH}", f"--processes={processes}", *until_empty])


def _set_for_children(**settings: object) -> None:
    """Put options into the environment, for this process and its children."""
    os.environ.update({name: str(value) for name, value in settings.items() if value is not None})

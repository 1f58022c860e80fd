"""``tandem queues``: list queues, and pause, resume, drain and purge them for the whole fleet."""

import asyncio
import shlex
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from pydantic_core import to_json
from rich.progress import Progress
from rich.table import Table

from db.text.plural import plural
from db.text.printable import printable
from worker.admin.deployment import Deployment
from worker.admin.queues import Pause, PurgeProgress, QueueAdmin, QueueInfo, QueueState
from worker.cli.confirmation import confirm
from worker.cli.deployment import actor, with_deployment
from worker.cli.output import FAILED, MISTAKE, err, explain, printable_text, wide_out
from worker.cli.times import length, parse_until, relative
from worker.config import Config

app = typer.Typer(help="List, pause, resume, drain and purge queues.", add_completion=False)


def _name(name: str) -> str:
    """The name of a queue, as `enqueue` takes it."""
    if not name:
        raise typer.BadParameter("give the name of a queue; 'tandem queues list' shows them")
    return name


Name = Annotated[str, typer.Argument(metavar="QUEUE", callback=_name, help="Name of the queue.")]
Until = Annotated[
    str | None, typer.Option(metavar="TIME", help="When the queue goes on by itself: 30m, 2h, or a time with its zone.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

_STYLES = {QueueState.ACTIVE: "green", QueueState.PAUSED: "yellow", QueueState.DRAINING: "cyan"}


@app.callback(invoke_without_command=True)
def _commands(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        context.get_help()  # it prints the help
        raise typer.Exit(MISTAKE)


@app.command("list")
def show_list(
    queues: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Queues to show. Default: WORKER_QUEUES, and all paused ones.")
    ] = None,
    *,
    json: Json = False,
) -> int:
    """Show the queues: their jobs, their workers, and whether they are paused."""
    config = Config.load() if queues is None else Config.load(queues=queues)
    found = with_deployment(lambda deployment: QueueAdmin(deployment).list(), config)
    if json:
        typer.echo(to_json(found))
    else:
        wide_out().print(_table(found))
    return 0


@app.command()
def pause(queue: Name, *, until: Until = None) -> int:
    """Start no more jobs of a queue, on any worker. Enqueueing and running jobs go on.

    \b
    tandem queues pause mail
    tandem queues pause mail --until 2h
    """
    end = None if until is None else parse_until(until)
    paused = with_deployment(lambda deployment: QueueAdmin(deployment).pause(queue, actor=actor(), until=end))
    return _paused(queue, "paused", paused)


@app.command()
def drain(queue: Name, *, until: Until = None) -> int:
    """Start the jobs that are due now, and no later ones. Then the queue is paused."""
    end = None if until is None else parse_until(until)
    paused = with_deployment(lambda deployment: QueueAdmin(deployment).drain(queue, actor=actor(), until=end))
    return _paused(queue, "draining", paused)


@app.command()
def resume(queue: Name) -> int:
    """End the pause of a queue."""
    if not with_deployment(lambda deployment: QueueAdmin(deployment).resume(queue, actor=actor())):
        return explain(printable(f"{queue} is not paused; 'tandem queues list' shows which queues are"), FAILED)
    typer.echo(printable(f"{queue} is active again"))
    return 0


@app.command()
def purge(
    queue: Name, *, yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False
) -> int:
    """Remove all jobs of a queue that wait. Running jobs go on.

    Job rows become discarded. Jobs without a row are gone.
    """

    async def act(deployment: Deployment) -> PurgeProgress | None:
        admin = QueueAdmin(deployment)
        count = await admin.waiting(queue)
        if not count:
            return PurgeProgress(0, 0, is_over=True)
        if not yes and not await asyncio.to_thread(
            confirm, f"Purge {plural(count, 'job')} of {queue}?", f"purge {plural(count, 'job')}"
        ):
            return None
        progress = PurgeProgress(count, 0)
        with Progress(console=err, transient=True, disable=not sys.stderr.isatty()) as display:
            bar = display.add_task("purged", total=count)
            async for progress in admin.purge(queue, actor=actor()):
                display.update(bar, total=progress.total, completed=progress.removed)
        return progress

    done = with_deployment(act)
    if done is None:
        return FAILED
    typer.echo(f"{done.removed:,} purged")
    return 0


def _paused(queue: str, state: str, pause: Pause) -> int:
    until = (
        f" until {pause.until:%Y-%m-%d %H:%M:%S %Z}" if pause.until else f": tandem queues resume {shlex.quote(queue)}"
    )
    typer.echo(printable(f"{queue} is {state}{until}"))
    if not pause.is_durable:
        err.print(printable_text("there is no database: the pause is lost if Redis loses its data", style="yellow"))
    return 0


def _table(queues: Sequence[QueueInfo]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("queue", overflow="fold")
    table.add_column("state")
    for column in ("jobs", "due", "oldest due", "later", "workers"):
        table.add_column(column, justify="right")
    for queue in queues:
        oldest = "" if queue.oldest_due is None else length(queue.oldest_due)
        table.add_row(
            printable_text(queue.name),
            printable_text(_state(queue), style=_STYLES[queue.state]),
            f"{queue.depth:,}",
            f"{queue.due:,}",
            oldest,
            f"{queue.later:,}",
            printable_text(f"{queue.workers}", style="" if queue.workers or not queue.depth else "red"),
        )
    return table


def _state(queue: QueueInfo) -> str:
    pause = queue.pause
    if pause is None:
        return queue.state
    until = f", ends {relative(pause.until)}" if pause.until else ""
    return f"{queue.state} {relative(pause.since)} by {pause.actor}{until}"

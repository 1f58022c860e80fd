"""``tandem workers``: list live workers, and quiet, resume and stop one from afar."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated

import typer
from pydantic_core import to_json
from rich.table import Table

from worker.admin.workers import WorkerAdmin, WorkerInfo
from worker.cli.deployment import actor, with_deployment
from worker.cli.output import FAILED, explain, printable_text, wide_out
from worker.cli.times import length
from worker.config import Config

app = typer.Typer(help="List, quiet, resume and stop workers.", add_completion=False)

Id = Annotated[str, typer.Argument(metavar="WORKER", help="Id of the worker, as 'tandem workers' shows it.")]

_STYLES = {"working": "green", "quiet": "yellow", "draining": "cyan", "starting": "cyan", "unwell": "red"}


@app.callback(invoke_without_command=True)
def show_list(
    context: typer.Context,
    *,
    queues: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Only workers of these queues. Default: WORKER_QUEUES.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List, quiet, resume and stop workers. Without a command: show the live workers and the jobs that they run."""
    if context.invoked_subcommand is not None:
        return
    config = Config.load() if queues is None else Config.load(queues=queues)
    workers = with_deployment(lambda deployment: WorkerAdmin(deployment).list(), config)
    if json:
        typer.echo(to_json(workers))
    elif workers:
        wide_out().print(describe_live(workers))
    else:
        raise typer.Exit(explain(f"no live worker serves {', '.join(config.queue_names)}", FAILED))


@app.command()
def quiet(worker: Id) -> int:
    """Let a worker claim no more jobs. Its running jobs go on, and it stays up."""
    return _order(worker, "claims nothing more", lambda admin: admin.quiet(worker, actor=actor()))


@app.command()
def resume(worker: Id) -> int:
    """Let a quiet worker claim jobs again."""
    return _order(worker, "claims jobs again", lambda admin: admin.resume(worker, actor=actor()))


@app.command()
def stop(worker: Id) -> int:
    """Let a worker drain and exit, as on SIGTERM. Its process manager may start another one."""
    return _order(worker, "drains and exits", lambda admin: admin.stop(worker, actor=actor()))


def _order(worker: str, effect: str, send: Callable[[WorkerAdmin], Awaitable[bool]]) -> int:
    if not with_deployment(lambda deployment: send(WorkerAdmin(deployment))):
        return explain(f"{worker}: no live worker has this id; 'tandem workers' lists them", FAILED)
    typer.echo(f"{worker} {effect}")
    return 0


def describe_live(workers: Sequence[WorkerInfo]) -> Table:
    """A table with a row for each worker, and the jobs that it runs."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("worker", "state", "queues"):
        table.add_column(column, overflow="fold")
    table.add_column("running", justify="right")
    table.add_column("jobs", overflow="fold")
    now = datetime.now(UTC)
    for worker in workers:
        slots = "" if worker.slots is None else f" of {worker.slots}"
        jobs = ", ".join(f"{job.task} {length((now - job.since).total_seconds())}" for job in worker.jobs)
        table.add_row(
            printable_text(worker.id),
            printable_text(f"{worker.state} {worker.why}".rstrip(), style=_STYLES.get(worker.state, "")),
            printable_text(", ".join(worker.queues)),
            f"{worker.running}{slots}",
            printable_text(jobs),
        )
    return table

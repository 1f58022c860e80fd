"""``tandem workers``: list live workers, and quiet, resume and stop one from afar."""

from collections.abc import Awaitable, Callable
from typing import Annotated

import typer
from pydantic_core import to_json

from db.text.plural import plural
from worker.admin.workers import WorkerAdmin
from worker.cli.deployment import actor, with_deployment
from worker.cli.live_workers import describe_workers
from worker.cli.output import FAILED, explain, wide_out
from worker.config import Config

app = typer.Typer(help="List, quiet, resume and stop workers.", add_completion=False)

Id = Annotated[str, typer.Argument(metavar="WORKER", help="Id of the worker, as 'tandem workers' shows it.")]


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
        wide_out().print(describe_workers(workers))
    if not workers:
        raise typer.Exit(explain(f"no live worker serves {', '.join(config.queue_names)}: tandem run", FAILED))


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


def _order(worker: str, effect: str, send: Callable[[WorkerAdmin], Awaitable[int]]) -> int:
    told = with_deployment(lambda deployment: send(WorkerAdmin(deployment)))
    if not told:
        return explain(f"{worker}: no live worker has this id; 'tandem workers' lists them", FAILED)
    typer.echo(f"{worker} {effect}" + (f" ({plural(told, 'process', 'processes')})" if told > 1 else ""))
    return 0

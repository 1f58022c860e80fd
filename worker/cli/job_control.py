"""``tandem jobs why``, ``abort`` and ``run-now``: one job, wherever it is."""

import shlex
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer
from pydantic_core import to_json

from db.text.printable import printable
from worker.admin.job_actions import ActionRefusedError, JobActions
from worker.admin.why import Reason, ReasonKind, why
from worker.cli.deployment import actor, with_deployment
from worker.cli.output import FAILED, explain, out, printable_text

Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the job.")]
OfQueue = Annotated[
    str | None, typer.Option("--queue", metavar="NAME", help="Queue of the job, if WORKER_QUEUES lacks it.")
]

STYLES = {
    ReasonKind.RUNNING: "green",
    ReasonKind.DONE: "green",
    ReasonKind.SCHEDULED: "cyan",
    ReasonKind.BEHIND: "cyan",
    ReasonKind.FAILED: "red",
    ReasonKind.NO_WORKER: "red",
    ReasonKind.UNKNOWN_TASK: "red",
}


def explain_job(
    job_id: Id, *, queue: OfQueue = None, json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False
) -> int:
    """Say why a job does not run, or how it ended, and what to do."""
    reason = with_deployment(lambda deployment: why(job_id, queue=queue, deployment=deployment))
    if json:
        typer.echo(to_json(reason))
    else:
        _print(reason)
    return FAILED if reason.kind is ReasonKind.UNKNOWN else 0


def abort(job_id: Id, *, queue: OfQueue = None) -> int:
    """Abort a job that waits or runs. A waiting job ends without running; a running one is rolled back."""
    return _act(job_id, "is being aborted", lambda actions: actions.abort(job_id, actor=actor(), queue=queue))


def run_now(job_id: Id, *, queue: OfQueue = None) -> int:
    """Make a job due now that is scheduled, or that a worker has put back."""
    return _act(job_id, "is due now", lambda actions: actions.run_now(job_id, actor=actor(), queue=queue))


def _act(job_id: str, effect: str, act: Callable[[JobActions], Awaitable[None]]) -> int:
    try:
        with_deployment(lambda deployment: act(JobActions(deployment)))
    except ActionRefusedError as error:
        why_not = f"tandem jobs why {shlex.quote(job_id)}"
        return explain(printable(f"{error}: {why_not}"), FAILED)
    typer.echo(printable(f"{job_id} {effect}"))
    return 0


def _print(reason: Reason) -> None:
    style = STYLES.get(reason.kind, "yellow")
    out.print(printable_text((reason.job_id, "bold"), "  ", (reason.kind.replace("_", " "), style)))
    place = ", ".join(f"{name} {value}" for name, value in (("task", reason.task), ("queue", reason.queue)) if value)
    if place:
        out.print(printable_text(f"  {place}", style="dim"))
    out.print(printable_text(f"  {reason.sentence}"))
    if reason.next_step:
        out.print(printable_text("  ", ("→ ", style), (reason.next_step, "bold")))

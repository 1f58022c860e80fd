"""``tandem audit``: the actions of people on jobs, queues, workers and schedules."""

from typing import Annotated

import typer
from pydantic_core import to_json
from rich.table import Table

from worker.admin.audit import AuditLog
from worker.cli.deployment import with_deployment
from worker.cli.output import printable_text, wide_out


def audit(
    *,
    limit: Annotated[int, typer.Option(metavar="N", min=1, max=1_000_000, help="Actions to show.")] = 20,
    actor: Annotated[str | None, typer.Option(metavar="NAME", help="Only actions of this person.")] = None,
    action: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only these actions, for example queue.pause, or job. for all.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option(metavar="NAME", help="Only actions on this queue, job, worker or task.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Show who did what, the latest first."""
    entries = with_deployment(
        lambda deployment: AuditLog(deployment).read(limit=limit, actor=actor, action=action, subject=subject)
    )
    if json:
        typer.echo(to_json(entries))
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("time", "who", "action", "on", "outcome"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        cells = (f"{entry.at:%Y-%m-%d %H:%M:%S} UTC", entry.actor, entry.action, entry.subject, entry.outcome or "?")
        table.add_row(*map(printable_text, cells))
    wide_out().print(table)
    return 0

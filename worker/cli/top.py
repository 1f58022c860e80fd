"""``tandem top``: the queues, workers and rates of the fleet, again each second."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from pydantic_core import to_json
from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from worker.admin.deployment import Deployment
from worker.admin.queues import QueueAdmin, QueueInfo, QueueState
from worker.broker.errors import RedisError
from worker.cli.deployment import with_deployment
from worker.cli.live_workers import describe_workers
from worker.cli.output import out, printable_text, wide_out
from worker.cli.times import length
from worker.config import Config
from worker.metrics.counts import Counts
from worker.metrics.reader import MetricsReader, Window
from worker.metrics.records import WorkerReport

_RATE = Window(120, 60)
"""Rates are those of the last minute that is over, and of the present one."""
_QUEUE_STYLES = {QueueState.ACTIVE: "green", QueueState.PAUSED: "yellow", QueueState.DRAINING: "cyan"}


@dataclass(frozen=True, slots=True)
class Moment:
    """The fleet at one moment."""

    queues: Sequence[QueueInfo]
    rates: dict[str, Counts]
    """What happened in each queue in the last two minutes or less."""
    seconds: float
    """The time of `rates`."""
    workers: Sequence[WorkerReport]


def top(
    queues: Annotated[
        str | None, typer.Option(metavar="A,B,C", help="Queues to show. Default: WORKER_QUEUES, and all paused ones.")
    ] = None,
    interval: Annotated[float, typer.Option(metavar="SECONDS", min=0.2, help="Time between two looks.")] = 1.0,
    *,
    once: Annotated[bool, typer.Option("--once", help="Look once and exit, as when output is not a terminal.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Look once and print JSON.")] = False,
) -> int:
    """Show the queues, the workers and their rates, live. Ctrl-C ends it."""
    config = Config.load() if queues is None else Config.load(queues=queues)
    if json:
        typer.echo(to_json(_data(with_deployment(_Fleet.look_once, config))))
    elif once or not sys.stdout.isatty():
        wide_out().print(describe(with_deployment(_Fleet.look_once, config)))
    else:
        with_deployment(lambda deployment: _show_live(_Fleet(deployment), interval), config)
    return 0


class _Fleet:
    """Reads the state of a deployment."""

    def __init__(self, deployment: Deployment) -> None:
        self._queues = QueueAdmin(deployment)
        self._metrics = MetricsReader(deployment.broker)

    async def look(self) -> Moment:
        queues = await self._queues.list()
        names = [queue.name for queue in queues]
        series = await self._metrics.throughput(_RATE, names)
        now = datetime.now(UTC)
        begun = min((each.points[0].start for each in series), default=now)
        rates = {each.queue: each.total for each in series}
        return Moment(queues, rates, max((now - begun).total_seconds(), 1.0), await self._metrics.workers(names))

    @classmethod
    async def look_once(cls, deployment: Deployment) -> Moment:
        return await cls(deployment).look()


async def _show_live(fleet: _Fleet, interval: float) -> None:
    with Live(console=out, screen=True, auto_refresh=False) as live:
        while True:
            try:
                live.update(describe(await fleet.look()), refresh=True)
            except (RedisError, OSError) as error:
                live.update(printable_text(f"REDIS_URL: no answer ({error}); trying again", style="red"), refresh=True)
            await asyncio.sleep(interval)


def describe(moment: Moment) -> Group:
    """The moment as a heading and two tables."""
    return Group(_heading(moment), Text(), _queue_table(moment), Text(), describe_workers(moment.workers))


def _heading(moment: Moment) -> Text:
    total = Counts.of(*(counts.row for counts in moment.rates.values())) if moment.rates else None
    finished = 0.0 if total is None else total.finished / moment.seconds
    failed = 0 if total is None else total.failed
    depth = sum(queue.depth for queue in moment.queues)
    busy, slots = sum(each.busy for each in moment.workers), sum(each.slots for each in moment.workers)
    return Text.assemble(
        ("tandem", "bold"),
        f"  {datetime.now(UTC):%H:%M:%S} UTC   ",
        (f"{finished:,.1f}", "bold"),
        " jobs/s   ",
        (f"{failed:,}", "bold red" if failed else "bold"),
        f" failed in {moment.seconds:.0f} s   ",
        (f"{depth:,}", "bold"),
        " in queues   ",
        (f"{busy} of {slots}", "bold"),
        " slots busy",
    )


def _queue_table(moment: Moment) -> Table:
    table = _table("queue", "state")
    for column in ("jobs", "due", "oldest due", "jobs/s", "failed", "wait p95", "run p50", "run p95", "empty in"):
        table.add_column(column, justify="right")
    for queue in moment.queues:
        counts = moment.rates.get(queue.name)
        rate = 0.0 if counts is None else counts.finished / moment.seconds
        table.add_row(
            printable_text(queue.name),
            printable_text(queue.state, style=_QUEUE_STYLES[queue.state]),
            f"{queue.depth:,}",
            f"{queue.due:,}",
            _length(queue.oldest_due),
            f"{rate:,.1f}",
            "" if counts is None else f"{counts.failed:,}",
            *(("", "", "") if counts is None else map(_length, (counts.waited.p95, counts.ran.p50, counts.ran.p95))),
            _length(queue.due / rate) if queue.due and rate else "",
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _length(seconds: float | None) -> str:
    return "" if seconds is None else length(seconds)


def _data(moment: Moment) -> dict[str, Any]:
    return {
        "queues": [
            {
                "name": queue.name,
                "state": queue.state,
                "depth": queue.depth,
                "due": queue.due,
                "oldest_due": queue.oldest_due,
                **_rates(moment.rates.get(queue.name), moment.seconds),
            }
            for queue in moment.queues
        ],
        "workers": list(moment.workers),
    }


def _rates(counts: Counts | None, seconds: float) -> dict[str, Any]:
    if counts is None:
        return {}
    return {
        "finished_per_second": counts.finished / seconds,
        "failed": counts.failed,
        "seconds": seconds,
        "wait_p95": counts.waited.p95,
        "run_p50": counts.ran.p50,
        "run_p95": counts.ran.p95,
    }

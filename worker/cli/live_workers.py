"""A table of live workers, for ``tandem workers`` and ``tandem top``."""

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.table import Table
from rich.text import Text

from worker.cli.output import printable_text
from worker.cli.times import length
from worker.metrics.records import WorkerReport, WorkerState

_MIB = 1024 * 1024
_WORKER_STYLES = {
    WorkerState.STARTING: "cyan",
    WorkerState.WORKING: "green",
    WorkerState.QUIET: "yellow",
    WorkerState.DRAINING: "cyan",
    WorkerState.UNWELL: "red",
}


def describe_workers(workers: Sequence[WorkerReport]) -> Table:
    """A table with a row for each worker."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("worker", overflow="fold")
    table.add_column("state", overflow="fold")
    for column in ("slots", "pool", "loop lag", "memory"):
        table.add_column(column, justify="right")
    table.add_column("running", overflow="fold")
    now = datetime.now(UTC)
    for worker in workers:
        jobs = [f"{job.task} {length(max((now - job.since).total_seconds(), 0))}" for job in worker.jobs[:3]]
        more = [f"and {len(worker.jobs) - 3} more"] if len(worker.jobs) > 3 else []
        pool = "" if worker.pool is None else f"{worker.pool.used}/{worker.pool.size}"
        table.add_row(
            printable_text(worker.id),
            printable_text(f"{worker.state} {worker.why}".rstrip(), style=_WORKER_STYLES[worker.state]),
            f"{worker.busy}/{worker.slots}",
            pool,
            f"{worker.loop_lag * 1000:.1f} ms",
            f"{worker.memory / _MIB:.0f} MiB",
            printable_text(", ".join([*jobs, *more])),
        )
    if not workers:
        table.add_row(Text("no worker", style="red"))
    return table

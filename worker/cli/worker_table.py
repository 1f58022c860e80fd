"""The output of ``python -m worker health``: a row for each healthy worker."""

from collections.abc import Mapping

from rich.table import Table

from worker.cli.output import printable_text
from worker.metrics.records import WorkerReport


def describe_workers(workers: Mapping[str, WorkerReport], depths: Mapping[str, int]) -> Table:
    """A table with a row for each worker.

    Args:
        depths: the jobs that wait or run in each queue.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("worker", "queues"):
        table.add_column(column)
    for column in ("running", "done", "failed", "retried", "loop lag", "last heartbeat"):
        table.add_column(column, justify="right")
    for worker_id, worker in workers.items():
        table.add_row(*map(printable_text, (worker_id, *_cells(worker, depths))))
    return table


def _cells(worker: WorkerReport, depths: Mapping[str, int]) -> list[str]:
    queues = ", ".join(f"{name}: {depths.get(name, 0):,}" for name in worker.queues)
    counts = [f"{count:,}" for count in (len(worker.jobs), worker.done, worker.failed, worker.retried)]
    return [queues, *counts, f"{worker.loop_lag * 1000:.1f} ms", f"{worker.last_heartbeat + worker.age:.1f} s ago"]

"""The output of ``python -m worker health``: a row for each healthy worker."""

from collections.abc import Mapping

from rich.table import Table

from worker.cli.output import printable_text
from worker.cli.worker_records import WorkerRecord


def describe_workers(workers: Mapping[str, WorkerRecord]) -> Table:
    """A table with a row for each worker."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("worker", "queues"):
        table.add_column(column)
    for column in ("running", "done", "failed", "retried", "loop lag", "last heartbeat"):
        table.add_column(column, justify="right")
    for column in ("redis", "database"):
        table.add_column(column)
    for worker_id, record in workers.items():
        table.add_row(*map(printable_text, (worker_id, *_cells(record))))
    return table


def _cells(record: WorkerRecord) -> list[str]:
    queues = ", ".join(f"{name}: {depth:,}" for name, depth in record.queued.items())
    counts = [f"{count:,}" for count in (record.running, record.done, record.failed, record.retried)]
    times = [f"{record.loop_lag * 1000:.1f} ms", f"{record.last_heartbeat:.1f} s ago"]
    return [queues, *counts, *times, record.redis, record.database]

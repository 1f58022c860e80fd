"""The progress of a scan: a bar on a terminal, lines elsewhere."""

import time
from collections.abc import AsyncIterable
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

_SECONDS_BETWEEN_LINES = 2.0


@dataclass(frozen=True)
class Counts:
    """The numbers of all jobs, of ended jobs and of failed jobs of a scan."""

    total: int
    ended: int = 0
    failed: int = 0


async def show(progress: AsyncIterable[Counts], console: Console) -> float:
    """Show the counts until the last ones; the seconds that this took."""
    started = time.monotonic()
    display = _show_bar if console.is_interactive else _show_lines
    await display(progress, console, started)
    return time.monotonic() - started


async def _show_bar(progress: AsyncIterable[Counts], console: Console, started: float) -> None:
    columns = (
        SpinnerColumn(),
        TextColumn("Indexing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("[red]{task.fields[failed]} failed[/]  {task.fields[rate]:.0f}/s"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bar:
        jobs = bar.add_task("", total=None, failed=0, rate=0.0)
        async for counts in progress:
            rate = _rate(counts, started)
            bar.update(jobs, total=counts.total, completed=counts.ended, failed=counts.failed, rate=rate)


async def _show_lines(progress: AsyncIterable[Counts], console: Console, started: float) -> None:
    next_line = 0.0
    async for counts in progress:
        if time.monotonic() >= next_line or counts.ended == counts.total:
            next_line = time.monotonic() + _SECONDS_BETWEEN_LINES
            rate = _rate(counts, started)
            console.print(f"{counts.ended:,} of {counts.total:,} jobs done, {counts.failed:,} failed, {rate:.0f}/s")


def _rate(counts: Counts, started: float) -> float:
    elapsed = time.monotonic() - started
    return counts.ended / elapsed if elapsed > 0 else 0.0

"""The options of a run, its results, and the printed report: faults, checks, and what is known of each violation."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.chaos.checks import CheckResult
from tests.chaos.logs import FaultLog

_MAX_VIOLATIONS = 20  # printed for each check


@dataclass(frozen=True)
class ChaosOptions:
    """What to run."""

    seconds: float
    """How long to inject faults."""
    seed: int
    folder: Path
    """An existing folder for all logs."""
    once: bool = True
    """Whether the tasks are declared with ``once=True``."""


@dataclass(frozen=True)
class Report:
    """The results of a run."""

    options: ChaosOptions
    fault_log: FaultLog
    results: list[CheckResult]
    leaks: list[str]
    """What was left behind: unfinished jobs, transactions, connections, Redis keys, processes."""
    job_histories: dict[str, list[str]]
    """All that is known of the jobs of the first violations, by key."""

    @property
    def passed(self) -> bool:
        """Whether no check failed, nothing leaked and no process failed."""
        return not (self.leaks or self.fault_log.process_failures or any(result.violations for result in self.results))

    @property
    def duplicates(self) -> int:
        """How many jobs left their effect more than once."""
        return sum(violation.effects > 1 for result in self.results for violation in result.violations)


def print_report(console: Console, report: Report) -> None:
    """Print the whole report."""
    console.print(_fault_table(report.fault_log))
    console.print(_check_table(report.results))
    for result in report.results:
        _print_list(console, result.claim, (f"{violation.key}: {violation.what}" for violation in result.violations))
    _print_list(
        console, "processes that ended unexpectedly, or did not end when told to", report.fault_log.process_failures
    )
    _print_list(console, "left behind", report.leaks)
    for key, lines in report.job_histories.items():
        _print_list(console, f"what is known of {key}", lines, limit=None)
    status = Text("passed", style="bold green") if report.passed else Text("FAILED", style="bold red")
    console.print(Text.assemble(f"{report.options.seconds:g} s of chaos with seed {report.options.seed}: ", status))


def _fault_table(log: FaultLog) -> Table:
    table = Table(title="Faults", title_justify="left")
    table.add_column("fault")
    table.add_column("injected", justify="right")
    table.add_column("skipped", justify="right")
    for name in sorted(log.injected | log.skipped):
        table.add_row(name, f"{log.injected[name]}", f"{log.skipped[name] or ''}")
    table.add_section()
    table.add_row("all", f"{log.injected.total()}", f"{log.skipped.total()}")
    return table


def _check_table(results: Iterable[CheckResult]) -> Table:
    table = Table(title="Checks", title_justify="left")
    table.add_column("claim")
    table.add_column("checked", justify="right")
    table.add_column("wrong", justify="right")
    for result in results:
        wrong = len(result.violations)
        table.add_row(result.claim, f"{result.checked:,}", Text(f"{wrong:,}", style="bold red" if wrong else "green"))
    return table


def _print_list(console: Console, title: str, lines: Iterable[str], limit: int | None = _MAX_VIOLATIONS) -> None:
    lines = list(lines)
    if not lines:
        return
    console.print(Text(f"{title}:", style="bold"))
    for line in lines[:limit]:
        console.print(Text(f"  {line}"))
    if limit is not None and len(lines) > limit:
        console.print(f"  and {len(lines) - limit} more")

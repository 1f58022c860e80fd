"""What a run says at its end: the faults, the counts, and what is known of each job that is not as it should be."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tests.chaos.driver import Report
from tests.chaos.verdict import Finding

_MOST_OFFENCES = 20  # listed of each claim


def print_report(console: Console, report: Report) -> None:
    """All of it."""
    console.print(_faults(report))
    console.print(_counts(report.findings))
    for finding in report.findings:
        _print_list(console, finding.claim, (f"{one.key}: {one.what}" for one in finding.offences))
    _print_list(
        console, "processes that ended when they should not, or did not when they should", report.chronicle.misdeeds
    )
    _print_list(console, "left behind", report.remains)
    for key, lines in report.evidence.items():
        _print_list(console, f"what is known of {key}", lines, most=None)
    verdict = Text("holds", style="bold green") if report.holds else Text("DOES NOT HOLD", style="bold red")
    console.print(Text.assemble(f"{report.plan.seconds:g} s of chaos with seed {report.plan.seed}: ", verdict))


def _faults(report: Report) -> Table:
    table = Table(title="Faults", title_justify="left")
    table.add_column("fault")
    table.add_column("fell", justify="right")
    table.add_column("spared", justify="right")
    chronicle = report.chronicle
    for name in sorted(chronicle.struck | chronicle.spared):
        table.add_row(name, f"{chronicle.struck[name]}", f"{chronicle.spared[name] or ''}")
    table.add_section()
    table.add_row("all", f"{chronicle.struck.total()}", f"{chronicle.spared.total()}")
    return table


def _counts(findings: Iterable[Finding]) -> Table:
    table = Table(title="Counts", title_justify="left")
    table.add_column("claim")
    table.add_column("jobs", justify="right")
    table.add_column("wrong", justify="right")
    for finding in findings:
        wrong = len(finding.offences)
        table.add_row(finding.claim, f"{finding.jobs:,}", Text(f"{wrong:,}", style="bold red" if wrong else "green"))
    return table


def _print_list(console: Console, title: str, lines: Iterable[str], most: int | None = _MOST_OFFENCES) -> None:
    lines = list(lines)
    if not lines:
        return
    console.print(Text(f"{title}:", style="bold"))
    for line in lines[:most]:
        console.print(Text(f"  {line}"))
    if most is not None and len(lines) > most:
        console.print(f"  and {len(lines) - most} more")

"""The report at the end of the demo: the census, the failed files with their errors, and the checks."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from examples.findings import Census, Comparison, Outcomes


def print_census(console: Console, census: Census, folder: Path) -> None:
    table = Table(title=f"Census of {folder}", show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    counts = {
        "files": len(census.modules),
        "classes": census.classes,
        "functions": census.functions,
        "lines": census.lines,
    }
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    if census.largest:
        table.add_section()
        table.add_row("largest modules", "lines", style="dim")
    for path, lines in census.largest:
        table.add_row(Text(_within(folder, path)), f"{lines:,}")
    console.print(table)


def print_failed(console: Console, outcomes: Outcomes, folder: Path) -> None:
    if outcomes.failed:
        console.print(f"{_files(len(outcomes.failed))} failed:")
    for path, reason in sorted(outcomes.failed.items()):
        console.print(Text.assemble("  ", (_within(folder, path), "red"), f"  {reason}"))


def print_check(console: Console, comparisons: Sequence[Comparison]) -> None:
    for comparison in comparisons:
        verdict = Text("holds", style="bold green") if comparison.holds else Text("DOES NOT HOLD", style="bold red")
        console.print(Text.assemble(f"Check: {comparison.text}: ", verdict))


def _files(number: int) -> str:
    return "1 file" if number == 1 else f"{number:,} files"


def _within(folder: Path, path: str) -> str:
    return str(Path(path).relative_to(folder))

"""What a scenario has to say: a table, the bars, a chart."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.bars import Finding


@dataclass(frozen=True)
class Chart:
    """Horizontal bars, one a contender."""

    title: str
    unit: str
    values: Sequence[tuple[str, float]]
    """Who, and how much."""
    ours: str
    """Who of them is to stand out."""


@dataclass(frozen=True)
class Section:
    """One scenario's results."""

    title: str
    method: str
    """How it was measured, in a few sentences."""
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    findings: Sequence[Finding] = ()
    chart: Chart | None = None
    failures: Sequence[str] = field(default=())
    """Who was not measured, and why."""

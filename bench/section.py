"""What a scenario has to say: a table, the targets, a chart."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from bench.targets import TargetResult


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
    target_results: Sequence[TargetResult] = ()
    chart: Chart | None = None
    failures: Sequence[str] = field(default=())
    """Who was not measured, and why."""

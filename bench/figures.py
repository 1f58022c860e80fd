"""What was measured: one value a round, told by its median."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True)
class Figures:
    """One quantity, measured several times."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        return cls(tuple(values))

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    def over(self, other: "Figures") -> "Figures":
        """The ratio to another quantity, round by round: what slowed the machine down in one round slowed both."""
        return Figures.of(ours / theirs for ours, theirs in zip(self.values, other.values, strict=True))


def percentile(values: Iterable[float], share: float) -> float:
    """The value that `share` (0 to 1) of all are not above."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def highest(figures: Mapping[str, Figures], among: Iterable[str]) -> str | None:
    """Whose median is the highest, of those who were measured."""
    measured = [key for key in among if key in figures]
    return max(measured, key=lambda key: figures[key].median, default=None)

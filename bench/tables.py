"""What the scenarios' tables have in common."""

from collections.abc import Mapping, Sequence

from bench.bars import Bar, Finding
from bench.contenders import TANDEM
from bench.figures import Figures
from bench.stage import Stage


def speed_rows(stage: Stage, speeds: Mapping[str, Figures]) -> list[Sequence[str]]:
    """A row for each who was measured: its speed, the range of the rounds, and how Tandem compares."""
    ours = speeds.get(TANDEM.key)
    return [
        (
            stage.title(key),
            f"{speed.median:,.0f}",
            f"{speed.low:,.0f} to {speed.high:,.0f}",
            f"{ours.over(speed).median:.2f} x" if ours and key != TANDEM.key else "",
        )
        for key, speed in speeds.items()
    ]


def medians(stage: Stage, figures: Mapping[str, Figures]) -> list[tuple[str, float]]:
    """For a chart: who, and the median, ours first."""
    ordered = sorted(figures, key=lambda key: key != TANDEM.key)
    return [(stage.title(key), figures[key].median) for key in ordered]


def against(bar: Bar, figures: Mapping[str, Figures], key: str | None, note: str = "") -> Finding:
    """Tandem's ratio to another entrant."""
    ours, theirs = figures.get(TANDEM.key), figures.get(key or "")
    if ours is None or theirs is None:
        missing = "Tandem failed" if ours is None else note or f"{key} was not measured"
        return Finding(bar, None, missing)
    return Finding(bar, ours.over(theirs), note)

"""What the scenarios' tables have in common."""

from collections.abc import Mapping, Sequence

from bench.contenders import TANDEM
from bench.context import BenchContext
from bench.figures import Figures
from bench.section import Chart
from bench.targets import Target, TargetResult


def speed_rows(context: BenchContext, speeds: Mapping[str, Figures]) -> list[Sequence[str]]:
    """A row for each who was measured: its speed, the range of the rounds, and how Tandem compares."""
    ours = speeds.get(TANDEM.key)
    return [
        (
            context.title(key),
            f"{speed.median:,.0f}",
            f"{speed.low:,.0f} to {speed.high:,.0f}",
            f"{ours.over(speed).median:.2f} x" if ours and key != TANDEM.key else "",
        )
        for key, speed in speeds.items()
    ]


def chart(context: BenchContext, title: str, unit: str, figures: Mapping[str, Figures]) -> Chart:
    """The medians as a picture."""
    values = [(context.title(key), figure.median) for key, figure in figures.items()]
    return Chart(title, unit, values, ours=context.title(TANDEM.key))


def against(
    target: Target, figures: Mapping[str, Figures], key: str | None, note: str = "", *, ours: str = TANDEM.key
) -> TargetResult:
    """Tandem's ratio to another entrant."""
    measured, theirs = figures.get(ours), figures.get(key or "")
    if measured is None or theirs is None:
        missing = "Tandem failed" if measured is None else note or f"{key} was not measured"
        return TargetResult(target, None, missing)
    return TargetResult(target, measured.over(theirs), note)

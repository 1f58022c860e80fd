"""The results as a picture: SVG, drawn by hand."""

from collections.abc import Iterable, Sequence
from xml.sax.saxutils import escape

from bench.section import Chart

_WIDTH = 800
_LABELS, _NUMBERS = 190, 110  # room left and right of the bars
_BAR, _STEP, _TITLE, _MARGIN = 16, 24, 40, 16
_OURS, _THEIRS, _INK, _PALE = "#1f6feb", "#a8b3c2", "#1f2328", "#59636e"


def svg(charts: Sequence[Chart]) -> str:
    """One picture of all charts, one below the other, on white."""
    parts: list[str] = []
    top = _MARGIN
    for chart in charts:
        parts += _chart(chart, top)
        top += _TITLE + _STEP * len(chart.values) + _MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top}" viewBox="0 0 {_WIDTH} {top}" '
            f'font-family="Helvetica, Arial, DejaVu Sans, sans-serif" font-size="13" role="img">',
            f"<title>{escape(', '.join(chart.title for chart in charts))}</title>",
            f'<rect width="{_WIDTH}" height="{top}" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _chart(chart: Chart, top: int) -> Iterable[str]:
    """Longest bar: the largest value."""
    yield _text(_MARGIN, top + 18, chart.title, f'font-weight="600" font-size="15" fill="{_INK}"')
    largest = max((value for _, value in chart.values), default=0.0) or 1.0
    for number, (label, value) in enumerate(chart.values):
        is_ours = label == chart.ours
        y = top + _TITLE - 6 + number * _STEP
        length = max(1.0, value / largest * (_WIDTH - _LABELS - _NUMBERS))
        baseline = y + _BAR - 4
        yield _text(_LABELS - 8, baseline, label, f'text-anchor="end" fill="{_INK if is_ours else _PALE}"')
        colour = _OURS if is_ours else _THEIRS
        yield f'<rect x="{_LABELS}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2" fill="{colour}"/>'
        yield _text(_LABELS + length + 8, baseline, f"{_number(value)} {chart.unit}", f'fill="{_INK}"')


def _text(x: float, y: float, text: str, style: str) -> str:
    return f'<text x="{x:.1f}" y="{y}" {style}>{escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"

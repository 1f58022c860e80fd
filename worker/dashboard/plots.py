"""Plots as SVG, made on the server. They have no style of their own: the style sheet gives them that."""

from collections.abc import Sequence

from markupsafe import Markup

_WIDTH, _HEIGHT = 600, 150


def spark(values: Sequence[int], label: str, *, kind: str = "bad") -> Markup:
    """A row of small bars."""
    top = max([*values, 1])
    width = 120 / max(len(values), 1)
    bars = [
        Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            nth * width, 24 - height, max(width - 1, 0.8), height
        )
        for nth, value in enumerate(values)
        if (height := max(23 * value / top, 2.0) if value else 0.6)
    ]
    return Markup('<svg class="spark {}" viewBox="0 0 120 24" role="img" aria-label="{}">{}</svg>').format(
        kind, f"{label}: {', '.join(map(str, values))}", Markup("").join(bars)
    )


def bar(value: float, total: float, *, kind: str = "") -> Markup:
    """How much of a total is reached, or taken."""
    share = 0.0 if total <= 0 else min(max(value / total, 0.0), 1.0)
    full = " full" if share >= 1 and not kind else ""
    return Markup(
        '<svg class="bar{}" viewBox="0 0 100 6" preserveAspectRatio="none" role="img" aria-label="{:.0f} %">'
        '<rect class="track" width="100" height="6"/><rect class="value" width="{:.2f}" height="6"/></svg>'
    ).format(full, share * 100, share * 100)


def area(values: Sequence[float], bad: Sequence[float], titles: Sequence[str], label: str) -> Markup:
    """A filled line, with bars of failures at its foot, and a title for each point."""
    top = max([*values, *bad, 1e-9])
    points = _points(values, top)
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    step = _WIDTH / max(len(values), 1)
    bars = [
        Markup('<rect class="bad" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
            nth * step + step * 0.15, _HEIGHT - height, step * 0.7, height
        )
        for nth, value in enumerate(bad)
        if value and (height := max(_HEIGHT * value / top, 2.0))
    ]
    first, last = points[0][0], points[-1][0]
    return _plot(
        label,
        Markup('<polygon class="area" points="{:.1f},{} {} {:.1f},{}"/><polyline class="stroke" points="{}"/>').format(
            first, _HEIGHT, line, last, _HEIGHT, line
        ),
        *bars,
        *_hits(titles, step),
    )


def lines(series: Sequence[Sequence[float | None]], titles: Sequence[str], label: str) -> Markup:
    """Several lines on one scale. The first one is in the accent colour. A missing value interrupts a line."""
    top = max([value for each in series for value in each if value is not None] or [1e-9]) or 1e-9
    shapes = []
    for nth, values in enumerate(series):
        for part in _parts(values):
            points = _points([value or 0.0 for value in values], top)[part]
            if len(points) == 1:  # a line needs two
                points.append((points[0][0] + 2, points[0][1]))
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            shapes.append(Markup('<polyline class="stroke{}" points="{}"/>').format(" second" if nth else "", line))
    step = _WIDTH / max(len(titles), 1)
    return _plot(label, *reversed(shapes), *_hits(titles, step))


def _plot(label: str, *shapes: Markup) -> Markup:
    grid = Markup("").join(
        Markup('<line class="grid" x1="0" x2="{}" y1="{}" y2="{}"/>').format(_WIDTH, y, y)
        for y in (0.5, _HEIGHT / 2, _HEIGHT - 0.5)
    )
    return Markup(
        '<svg class="plot" viewBox="0 0 {} {}" preserveAspectRatio="none" role="img" aria-label="{}">{}{}</svg>'
    ).format(_WIDTH, _HEIGHT, label, grid, Markup("").join(shapes))


def _points(values: Sequence[float], top: float) -> list[tuple[float, float]]:
    step = _WIDTH / max(len(values), 1)
    return [((nth + 0.5) * step, _HEIGHT - (_HEIGHT - 4) * value / top) for nth, value in enumerate(values)]


def _hits(titles: Sequence[str], step: float) -> list[Markup]:
    """Invisible columns, each with the figures of its point."""
    return [
        Markup('<rect class="hit" x="{:.1f}" y="0" width="{:.1f}" height="{}"><title>{}</title></rect>').format(
            nth * step, step, _HEIGHT, title
        )
        for nth, title in enumerate(titles)
    ]


def _parts(values: Sequence[float | None]) -> list[slice]:
    """The uninterrupted parts of a line."""
    parts, start = [], None
    for nth, value in enumerate([*values, None]):
        if value is None and start is not None:
            parts.append(slice(start, nth))
            start = None
        elif value is not None and start is None:
            start = nth
    return parts

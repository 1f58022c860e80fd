"""The first page: what has happened of late, the queues, the workers, and what needs attention."""

from collections.abc import Sequence
from datetime import UTC, datetime

from starlette.requests import Request
from starlette.responses import Response

from worker.admin.overview import Matter, Moment
from worker.dashboard import plots, text
from worker.dashboard.pages.slow import SlowValue
from worker.dashboard.site import Site
from worker.metrics.reader import DAY, HOUR, THREE_DAYS

WINDOWS = {"1h": HOUR, "24h": DAY, "72h": THREE_DAYS}
_POINTS = 72  # of a plot


class OverviewPage:
    """The overview."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._matters = SlowValue(self._read_matters, site.background)

    async def show(self, request: Request) -> Response:
        """Show the overview, over the window that the URL names."""
        site = self._site
        name = request.query_params.get("window", "1h")
        window = WINDOWS.get(name, HOUR)
        queues = await site.queues.list()
        names = [queue.name for queue in queues]
        activity = await site.overview.activity(window, names)
        workers = await site.metrics.workers(names)
        moments = _joined(_begun(activity.moments), _POINTS)
        return site.page(
            request,
            "overview.html",
            section="overview",
            windows=WINDOWS,
            window=name if name in WINDOWS else "1h",
            activity=activity,
            moments=moments,
            throughput=_throughput(moments),
            waited=_quantiles(moments, "waited"),
            ran=_quantiles(moments, "ran"),
            top=max((_rate(moments, moment) for moment in moments), default=0.0),
            queues=queues,
            rates=await site.overview.rates(queues, workers),
            workers=workers,
            matters=await self._matters.get(),
        )

    async def _read_matters(self) -> Sequence[Matter]:
        queues = await self._site.queues.list()
        workers = await self._site.metrics.workers([queue.name for queue in queues])
        return await self._site.overview.matters(queues, workers, await self._site.failures.overview())


def _begun(moments: Sequence[Moment]) -> Sequence[Moment]:
    """The moments without the last one, if that has just begun: it would show as a fall to nothing."""
    if not moments:
        return moments
    passed = (datetime.now(UTC) - moments[-1].start).total_seconds()
    return moments if passed > _seconds(moments) / 2 else moments[:-1]


def _joined(moments: Sequence[Moment], most: int) -> list[Moment]:
    """The moments, several in one where there are more than a plot has room for."""
    size = -(-len(moments) // most)
    if size <= 1:
        return list(moments)
    groups = [moments[first : first + size] for first in range(0, len(moments), size)]
    return [
        Moment(group[0].start, type(group[0].counts).of(*(moment.counts.row for moment in group))) for group in groups
    ]


def _seconds(moments: Sequence[Moment]) -> float:
    return (moments[1].start - moments[0].start).total_seconds() if len(moments) > 1 else 60.0


def _rate(moments: Sequence[Moment], moment: Moment) -> float:
    return moment.counts.finished / _seconds(moments)


def _throughput(moments: Sequence[Moment]) -> object:
    seconds = _seconds(moments)
    titles = [
        f"{_span(moment.start)}: {moment.counts.completed:,} done, {moment.counts.failed:,} failed, "
        f"{moment.counts.retried:,} retried"
        for moment in moments
    ]
    lasted = [seconds] * len(moments)
    if moments:  # the last one is not over yet
        passed = (datetime.now(UTC) - moments[-1].start).total_seconds()
        lasted[-1] = min(max(passed, seconds / 4), seconds)
    done = [moment.counts.finished / time for moment, time in zip(moments, lasted, strict=True)]
    failed = [moment.counts.failed / time for moment, time in zip(moments, lasted, strict=True)]
    return plots.area(done, failed, titles, "Jobs a second that ended, and those that failed")


def _quantiles(moments: Sequence[Moment], which: str) -> dict[str, object]:
    histograms = [getattr(moment.counts, which) for moment in moments]
    titles = [
        f"{_span(moment.start)}: p50 {text.duration(each.p50)}, p95 {text.duration(each.p95)}"
        for moment, each in zip(moments, histograms, strict=True)
    ]
    p50, p95 = [each.p50 for each in histograms], [each.p95 for each in histograms]
    name = "Waiting time" if which == "waited" else "Running time"
    return {
        "plot": plots.lines([p50, p95], titles, f"{name}: median and 95th percentile"),
        "top": max((value for value in p95 if value is not None), default=None),
    }


def _span(start: datetime) -> str:
    return f"{start:%d %b %H:%M} UTC"

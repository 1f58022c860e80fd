"""The bars: what must be reached, and what is aimed at; and whether it was."""

from collections.abc import Callable
from dataclasses import dataclass

from bench.figures import Figures


def _times(value: float) -> str:
    return f"{value:.1f} x" if value >= 10 else f"{value:.2f} x"


def _seconds(value: float) -> str:
    return f"{value:.2f} s"


def _milliseconds(value: float) -> str:
    return f"{value:.2f} ms"


def _speed(value: float) -> str:
    return f"{value:,.0f} jobs/s"


def _percent(value: float) -> str:
    return f"{value:.1f} %"


def _trips(value: float) -> str:
    return f"{value:.1f}"


@dataclass(frozen=True)
class Bar:
    """One promise."""

    what: str
    must: float | None
    aim: float | None = None
    shown_as: Callable[[float], str] = _times
    more_is_better: bool = True

    def reached(self, value: float, goal: float) -> bool:
        return value >= goal if self.more_is_better else value <= goal

    def shown(self, goal: float | None) -> str:
        return "" if goal is None else self.shown_as(goal)


@dataclass(frozen=True)
class Finding:
    """What was measured against a bar."""

    bar: Bar
    figures: Figures | None
    note: str = ""
    """What belongs to the number; where there is none, why."""

    @property
    def measured(self) -> str:
        if self.figures is None:
            return "not measured"
        shown = self.bar.shown_as
        spread = f" ({shown(self.figures.low)} to {shown(self.figures.high)})" if len(self.figures.values) > 1 else ""
        return shown(self.figures.median) + spread

    @property
    def verdict(self) -> str:
        if self.figures is None:
            return "?"
        value, bar = self.figures.median, self.bar
        if bar.aim is not None and bar.reached(value, bar.aim):
            return "aim reached"
        if bar.must is None:
            return "below the aim"
        return "reached" if bar.reached(value, bar.must) else "MISSED"


_NOOP = "no-op jobs, one process, concurrency 32, results kept, validation on"
NOOP_AGAINST_ARQ = Bar(f"{_NOOP}: against arq", 30, 60)
NOOP_SPEED = Bar(f"{_NOOP}: speed", None, 19_000, _speed)
NOOP_AGAINST_REDIS_PEERS = Bar("the same against the fastest of SAQ, streaQ, taskiq", 6, 12)
NOOP_AGAINST_OBAN = Bar("the same against oban-py", 2, 4)
INSERT_AGAINST_BARE = Bar(
    "job adding one ORM row, committed, pool 32, at least once: against a bare loop with no queue", 0.80, 0.90
)
INSERT_ONCE_AGAINST_BARE = Bar(
    "the same with the ledger, effects once: against a bare loop that runs the same statements", 0.85
)
INSERT_AGAINST_OBAN = Bar("job adding one ORM row, committed, pool 32, at least once: against oban-py", 1)
INSERT_ONCE_AGAINST_OBAN = Bar(
    "the same with the ledger, effects once: against oban-py, which has no such guarantee", 1
)
ENQUEUE_BATCH = Bar("enqueue 20,000, batched", 0.6, 0.3, _seconds, more_is_better=False)
ENQUEUE_TRIPS = Bar("one enqueue: round trips", 1, shown_as=_trips, more_is_better=False)
LATENCY = Bar("idle enqueue-to-start, p50", 2, 1, _milliseconds, more_is_better=False)
RECOVERY_10 = Bar("running again after kill -9 of a worker, lease 10 s", 12, 10.5, _seconds, more_is_better=False)
RECOVERY_2 = Bar("running again after kill -9 of a worker, lease 2 s", 4, 2.5, _seconds, more_is_better=False)
BACKLOG_QUEUED = Bar("throughput with 1,000,000 jobs queued, against the empty case", 0.9)
BACKLOG_RUNNING = Bar("throughput with 1,000 running elsewhere, against the empty case", 0.9)
MEMORY = Bar("worker memory over 1,000,000 jobs: largest change", 5, shown_as=_percent, more_is_better=False)
PROCESSES = Bar("two processes instead of one, jobs that wait 20 ms", 1.9)
FOOTPRINT = Bar("Redis memory per queued job, against arq's", 1, more_is_better=False)

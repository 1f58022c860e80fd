"""The targets of the measurements, and whether they were reached."""

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
class Target:
    """One promise: the value that is required, and the one that is aimed at."""

    what: str
    required: float | None
    aim: float | None = None
    shown_as: Callable[[float], str] = _times
    more_is_better: bool = True

    def reached(self, value: float, goal: float) -> bool:
        return value >= goal if self.more_is_better else value <= goal

    def shown(self, goal: float | None) -> str:
        return "" if goal is None else self.shown_as(goal)


@dataclass(frozen=True)
class TargetResult:
    """What was measured for a target."""

    target: Target
    figures: Figures | None
    note: str = ""
    """An addition to the figure, or why there is none."""

    @property
    def measured(self) -> str:
        if self.figures is None:
            return "not measured"
        shown = self.target.shown_as
        spread = f" ({shown(self.figures.low)} to {shown(self.figures.high)})" if len(self.figures.values) > 1 else ""
        return shown(self.figures.median) + spread

    @property
    def status(self) -> str:
        if self.figures is None:
            return "?"
        value, target = self.figures.median, self.target
        if target.aim is not None and target.reached(value, target.aim):
            return "aim reached"
        if target.required is None:
            return "below the aim"
        return "reached" if target.reached(value, target.required) else "MISSED"


_NOOP = "no-op jobs, one process, concurrency 32, results kept, validation on"
NOOP_AGAINST_ARQ = Target(f"{_NOOP}: against arq", 30, 60)
NOOP_SPEED = Target(f"{_NOOP}: speed", None, 19_000, _speed)
NOOP_AGAINST_REDIS_PEERS = Target("the same against the fastest of SAQ, streaQ, taskiq", 6, 12)
NOOP_AGAINST_OBAN = Target("the same against oban-py", 2, 4)
INSERT_AGAINST_BARE = Target(
    "job adding one ORM row, committed, pool 32, at least once: against a bare loop with no queue", 0.80, 0.90
)
INSERT_ONCE_AGAINST_BARE = Target(
    "the same with the ledger, effects once: against a bare loop that runs the same statements", 0.85
)
INSERT_AGAINST_OBAN = Target("job adding one ORM row, committed, pool 32, at least once: against oban-py", 1)
INSERT_ONCE_AGAINST_OBAN = Target(
    "the same with the ledger, effects once: against oban-py, which has no such guarantee", 1
)
ENQUEUE_BATCH = Target("enqueue 20,000, batched", 0.6, 0.3, _seconds, more_is_better=False)
ENQUEUE_TRIPS = Target("one enqueue: round trips", 1, shown_as=_trips, more_is_better=False)
LATENCY = Target("idle enqueue-to-start, p50", 2, 1, _milliseconds, more_is_better=False)
RECOVERY_10 = Target("running again after kill -9 of a worker, lease 10 s", 12, 10.5, _seconds, more_is_better=False)
RECOVERY_2 = Target("running again after kill -9 of a worker, lease 2 s", 4, 2.5, _seconds, more_is_better=False)
BACKLOG_QUEUED = Target("throughput with 1,000,000 jobs queued, against the empty case", 0.9)
BACKLOG_RUNNING = Target("throughput with 1,000 running elsewhere, against the empty case", 0.9)
CHUNKS = Target("jobs that add a row, in chunks of 100, against one by one", 8)
LARGE_TABLE = Target("row jobs with 10,000,000 done rows in the ledger, against an empty one", 0.95)
OBSERVED = Target("throughput while the dashboard's pages are fetched every 2 s, against an idle dashboard", 0.98)
MEMORY = Target("worker memory over 1,000,000 jobs: largest change", 5, shown_as=_percent, more_is_better=False)
PROCESSES = Target("two processes instead of one, jobs that wait 20 ms", 1.9)
FOOTPRINT = Target("Redis memory per queued job, against arq's", 1, more_is_better=False)

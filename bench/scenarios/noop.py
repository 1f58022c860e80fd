"""No-op jobs: what a queue itself costs."""

from collections.abc import Mapping
from functools import partial

from bench import targets
from bench.contenders import ARQ, OBAN, SAQ, STREAQ, TANDEM, TASKIQ, Contender
from bench.context import BenchContext, figures
from bench.drain import drain
from bench.figures import Figures, highest
from bench.progress import Step
from bench.section import Section
from bench.tables import against, chart, speed_rows
from bench.targets import TargetResult

_REDIS_PEERS = (SAQ, STREAQ, TASKIQ)


def run(context: BenchContext) -> Section:
    count = context.workload.noop
    entrants = {one.key: partial(_measure, one, count) for one in context.contenders}
    results = context.alternate("no-op jobs", entrants, "{:,.0f} jobs/s".format)
    speeds = figures(results)
    return Section(
        title="No-op jobs",
        method=f"{count:,} jobs with one integer argument are queued, then one worker is started. The time is that "
        "from the first line of its first job to the moment when the queue's own store says that the last has ended, "
        "with its result kept; the library then lists all of them as completed.",
        header=("", "jobs/s", "range", "Tandem against it"),
        rows=speed_rows(context, speeds),
        target_results=[
            against(targets.NOOP_AGAINST_ARQ, speeds, ARQ.key),
            TargetResult(targets.NOOP_SPEED, speeds.get(TANDEM.key)),
            _against_fastest(context, speeds),
            against(targets.NOOP_AGAINST_OBAN, speeds, OBAN.key),
        ],
        chart=chart(context, "No-op jobs", "jobs/s", speeds),
        failures=context.failures(results),
    )


def _against_fastest(context: BenchContext, speeds: Mapping[str, Figures]) -> TargetResult:
    fastest = highest(speeds, (peer.key for peer in _REDIS_PEERS))
    missing = [peer.title for peer in _REDIS_PEERS if peer.key not in speeds]
    note = f"against {context.title(fastest)}" if fastest else ""
    if missing:
        note = ", ".join(filter(None, [note, f"without {' and '.join(missing)}"]))
    return against(targets.NOOP_AGAINST_REDIS_PEERS, speeds, fastest, note)


def _measure(contender: Contender, count: int, step: Step) -> float:
    contender.enqueue("noop", count)
    return drain(contender, step, count, completed=count)

"""Two processes instead of one, on jobs that wait."""

from functools import partial

from bench import targets
from bench.contender_api import CONCURRENCY, WAITING_JOB_SECONDS
from bench.contenders import Contender
from bench.context import BenchContext, figures
from bench.drain import drain
from bench.progress import Step
from bench.section import Section
from bench.targets import TargetResult

_ONE, _TWO = "one process", "two processes"


def run(context: BenchContext) -> Section:
    count = context.workload.waiting
    entrants = {
        _ONE: partial(_measure, context.tandem, count, 1),
        _TWO: partial(_measure, context.tandem, count, 2),
    }
    results = context.alternate("two processes", entrants, "{:,.0f} jobs/s".format)
    speeds = figures(results)
    ratio = speeds[_TWO].over(speeds[_ONE]) if len(speeds) == len(entrants) else None
    most = CONCURRENCY / WAITING_JOB_SECONDS
    return Section(
        title="Two processes",
        method=f"{count:,} jobs of Tandem that sleep for {WAITING_JOB_SECONDS * 1000:.0f} ms, {CONCURRENCY} at once "
        f"in each process; no more than {most:,.0f} jobs/s a process are possible.",
        header=("", "jobs/s", "range", "of what is possible"),
        rows=[
            (
                key,
                f"{speed.median:,.0f}",
                f"{speed.low:,.0f} to {speed.high:,.0f}",
                f"{speed.median / most / (2 if key == _TWO else 1):.0%}",
            )
            for key, speed in speeds.items()
        ],
        target_results=[TargetResult(targets.PROCESSES, ratio, "; ".join(results.failures.values()))],
        failures=context.failures(results),
    )


def _measure(tandem: Contender, count: int, workers: int, step: Step) -> float:
    tandem.enqueue("wait", count)
    return drain(tandem, step, count, workers=workers, completed=count)

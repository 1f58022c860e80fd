"""Two processes instead of one, on jobs that wait."""

from functools import partial

from bench import bars
from bench.bars import Finding
from bench.contenders import Contender
from bench.progress import Step
from bench.rundown import run_down
from bench.section import Section
from bench.stage import Stage, figures
from bench.yardstick import CONCURRENCY, PAUSE_OF_A_WAITING_JOB

_ONE, _TWO = "one process", "two processes"


def run(stage: Stage) -> Section:
    count = stage.sizes.waiting
    entrants = {
        _ONE: partial(_measure, stage.tandem, count, 1),
        _TWO: partial(_measure, stage.tandem, count, 2),
    }
    results = stage.alternate("two processes", entrants, "{:,.0f} jobs/s".format)
    speeds = figures(results)
    ratio = speeds[_TWO].over(speeds[_ONE]) if len(speeds) == len(entrants) else None
    most = CONCURRENCY / PAUSE_OF_A_WAITING_JOB
    return Section(
        title="Two processes",
        method=f"{count:,} jobs of Tandem that sleep for {PAUSE_OF_A_WAITING_JOB * 1000:.0f} ms, {CONCURRENCY} at once "
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
        findings=[Finding(bars.PROCESSES, ratio, "; ".join(results.failures.values()))],
        failures=stage.failures(results),
    )


def _measure(tandem: Contender, count: int, workers: int, step: Step) -> float:
    tandem.enqueue("wait", count)
    return run_down(tandem, step, count, workers=workers, completed=count)

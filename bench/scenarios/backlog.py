"""Whether what waits, or runs elsewhere, slows down what runs."""

from functools import partial

from bench import bars
from bench.bars import Bar, Finding
from bench.contenders import Contender
from bench.figures import Figures
from bench.progress import Step
from bench.rundown import run_down
from bench.section import Section
from bench.sizes import Sizes
from bench.stage import Stage, figures

_EMPTY = "nothing else in the queue"
_A_DAY = "86400"  # seconds


def run(stage: Stage) -> Section:
    sizes = stage.sizes
    queued, running = f"{sizes.backlog:,} jobs queued", f"{sizes.elsewhere:,} jobs running elsewhere"
    entrants = {
        _EMPTY: partial(_alone, stage.tandem, sizes),
        queued: partial(_with_backlog, stage.tandem, sizes),
        running: partial(_with_others_running, stage.tandem, sizes),
    }
    results = stage.alternate("backlog", entrants, "{:,.0f} jobs/s".format, sizes.close_rounds)
    speeds = figures(results)
    return Section(
        title="Backlog",
        method=f"The time that Tandem takes for {sizes.beside_backlog:,} no-op jobs: alone, as the first of many that "
        "are queued, and while another worker holds many jobs that do not end.",
        header=("", "jobs/s", "range"),
        rows=[(key, f"{speed.median:,.0f}", f"{speed.low:,.0f} to {speed.high:,.0f}") for key, speed in speeds.items()],
        findings=[
            _finding(bars.BACKLOG_QUEUED, speeds, queued, results.failures),
            _finding(bars.BACKLOG_RUNNING, speeds, running, results.failures),
        ],
        failures=stage.failures(results),
    )


def _finding(bar: Bar, speeds: dict[str, Figures], case: str, failures: dict[str, str]) -> Finding:
    if case in speeds and _EMPTY in speeds:
        return Finding(bar, speeds[case].over(speeds[_EMPTY]))
    return Finding(bar, None, failures.get(case) or failures.get(_EMPTY, ""))


def _alone(tandem: Contender, sizes: Sizes, step: Step) -> float:
    tandem.enqueue("noop", sizes.beside_backlog)
    return run_down(tandem, step, sizes.beside_backlog, completed=sizes.beside_backlog)


def _with_backlog(tandem: Contender, sizes: Sizes, step: Step) -> float:
    step.now(f"queueing {sizes.backlog:,} jobs")
    tandem.enqueue("noop", sizes.backlog)
    return run_down(tandem, step, sizes.backlog, to=sizes.backlog - sizes.beside_backlog)


def _with_others_running(tandem: Contender, sizes: Sizes, step: Step) -> float:
    others = sizes.elsewhere
    tandem.enqueue("hold", others)
    with tandem.worker(BENCH_HOLD=_A_DAY, WORKER_CONCURRENCY=str(others), WORKER_ID="elsewhere") as elsewhere:
        for _ in range(others):
            elsewhere.told("held")
        tandem.enqueue("noop", sizes.beside_backlog)
        # It has no free slots any more; those of the worker that is timed are all there is.
        ours = sizes.beside_backlog
        return run_down(tandem, step, ours + others, to=others, completed=ours)

"""Jobs that add a row, handled in chunks and one by one."""

from functools import partial

from bench import targets
from bench.contenders import Contender
from bench.context import BenchContext, figures
from bench.drain import drain
from bench.progress import Step
from bench.scenarios.insert import check_rows
from bench.section import Section
from bench.tables import against

_ALONE, _TOGETHER = "one by one", "in chunks of 100"
_MORE = 5  # times the jobs, so that both take a while


def run(context: BenchContext) -> Section:
    inserts = context.workload.inserts
    entrants = {
        _ALONE: partial(_measure, context.tandem, "insert", inserts),
        _TOGETHER: partial(_measure, context.tandem, "insert_in_chunks", _MORE * inserts),
    }
    results = context.alternate("chunks", entrants, "{:,.0f} jobs/s".format)
    speeds = figures(results)
    return Section(
        title="Chunks",
        method=f"{inserts:,} jobs of Tandem that add one row each through the SQLAlchemy ORM, each in its own "
        f"transaction, and {_MORE * inserts:,} of a task that is handled in chunks. Each job happens once.",
        header=("", "jobs/s", "range"),
        rows=[(key, f"{speed.median:,.0f}", f"{speed.low:,.0f} to {speed.high:,.0f}") for key, speed in speeds.items()],
        target_results=[against(targets.CHUNKS, speeds, _ALONE, ours=_TOGETHER)],
        failures=context.failures(results),
    )


def _measure(tandem: Contender, task: str, count: int, step: Step) -> float:
    tandem.enqueue(task, count)
    speed = drain(tandem, step, count, completed=count)
    check_rows(tandem.postgres, count)
    return speed

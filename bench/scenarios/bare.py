"""Jobs that add a row beside a loop that does the same: what a queue costs."""

import sys
from functools import partial

from bench import interleaved, targets
from bench.contenders import TANDEM_AT_LEAST_ONCE
from bench.context import BenchContext, Measure
from bench.interleaved import InterleavedProgram, SpeedPair, run_interleaved
from bench.process import ContenderError, Process
from bench.progress import Step
from bench.section import Section
from bench.servers import PostgresServer
from bench.tables import against

_BARE = "a bare loop, no queue"
_ONCE, _BARE_ONCE = "Tandem, effects once", "a bare loop, the ledger's statement too"


def run(context: BenchContext) -> Section:
    workload = context.workload
    pairs: dict[str, Measure[SpeedPair]] = {
        TANDEM_AT_LEAST_ONCE: partial(_measure, context, "insert_at_least_once", with_ledger=False),
        _ONCE: partial(_measure, context, "insert", with_ledger=True),
    }
    results = context.alternate("beside a bare loop", pairs, str, workload.bare_rounds)
    speeds = interleaved.figures(results, {TANDEM_AT_LEAST_ONCE: _BARE, _ONCE: _BARE_ONCE})
    return Section(
        title="Jobs that add a row, beside a bare loop",
        method="The same jobs, and a loop that does what they do with 32 sessions at once and nothing around them. "
        "With `once=False` a job does not tell the ledger, and may happen again. Worker and loop live at the "
        f"same time, each with its own database, and take turns of {workload.slice_seconds:g} s, "
        f"{workload.slices} of them each a round: while one runs, the other one is stopped (SIGSTOP). Who begins "
        f"changes from turn to turn. Each has added {workload.warm_up} rows before, for which its connections were "
        "opened. A speed is that of a round: the rows that were added in all turns, divided by their seconds. No two "
        "rows may be of one job, and the ledger must know of each that was to tell it.",
        header=("", "jobs/s", "range"),
        rows=[(key, f"{speed.median:,.0f}", f"{speed.low:,.0f} to {speed.high:,.0f}") for key, speed in speeds.items()],
        target_results=[
            against(targets.INSERT_AGAINST_BARE, speeds, _BARE, ours=TANDEM_AT_LEAST_ONCE),
            against(targets.INSERT_ONCE_AGAINST_BARE, speeds, _BARE_ONCE, ours=_ONCE),
        ],
        failures=context.failures(results),
    )


def _measure(context: BenchContext, task: str, step: Step, *, with_ledger: bool) -> SpeedPair:
    workload, tandem, second = context.workload, context.tandem, context.servers.second_postgres
    tandem.enqueue(task, workload.beside_bare)
    command = [sys.executable, "-m", "bench.bare_loop", str(workload.beside_bare), *(["ledger"] if with_ledger else [])]
    with Process(command, {"DATABASE_URL": second.url}) as loop:
        bare = InterleavedProgram(loop, interleaved.count_rows(second), "the bare loop")
        bare.warm_up(workload.warm_up)
        with tandem.worker() as worker:
            ours = InterleavedProgram(worker, interleaved.count_rows(tandem.postgres), "the worker")
            ours.warm_up(workload.warm_up)
            run_interleaved(ours, bare, slices=workload.slices, seconds=workload.slice_seconds, step=step)
            for postgres in (tandem.postgres, second):
                _check(postgres, workload.beside_bare, with_ledger=with_ledger)
            return SpeedPair(ours.speed, bare.speed)


def _check(postgres: PostgresServer, most: int, *, with_ledger: bool) -> None:
    """Raise `ContenderError` if a job has added two rows, or has not told the ledger though it was to."""
    rows = postgres.number("SELECT count(*) FROM bench_rows")
    if rows >= most:
        raise ContenderError(f"{most} jobs are too few: they had ended before the last slice had")
    if postgres.number("SELECT count(DISTINCT number) FROM bench_rows") != rows:
        raise ContenderError("some jobs have added more than one row")
    told = postgres.number("SELECT count(*) FROM tandem_jobs WHERE state = 'done'")
    if told != (rows if with_ledger else 0):
        raise ContenderError(f"the ledger knows of {told} jobs, and there are {rows} rows")

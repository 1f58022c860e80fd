"""Whether a large ledger slows down the jobs that add a row."""

from bench import interleaved, targets
from bench.contenders import Contender
from bench.context import BenchContext, Measure
from bench.interleaved import InterleavedProgram, SpeedPair, run_interleaved
from bench.process import ContenderError, Process
from bench.progress import Step
from bench.section import Section
from bench.servers import PostgresServer
from bench.tables import against

_WEEK = 7 * 86_400_000  # milliseconds
_FILL = """
    INSERT INTO tandem_jobs (id, enqueued_at, task, queue, state, due, result, tries, started_at, finished_at)
    SELECT lpad(to_hex(ms), 12, '0') || '7' || left(md5(g::text), 19), ms, 'insert', 'arq:queue', 'done',
           ms, 'null', 1, ms, ms
    FROM (SELECT g, (extract(epoch FROM now()) * 1000)::bigint - {week} + g * {week}::bigint / {rows} AS ms
          FROM generate_series(1, {rows}::bigint) g) AS moments
"""


def run(context: BenchContext) -> Section:
    workload = context.workload
    filled, empty = f"{workload.large_table:,} done rows", "an empty table, by turns with it"
    pairs: dict[str, Measure[SpeedPair]] = {filled: lambda step: _measure(context, step)}
    results = context.alternate("large ledger", pairs, str, rounds=1)
    speeds = interleaved.figures(results, {filled: empty})
    return Section(
        title="A large ledger",
        method="Jobs that add a row, with effects once. The ledger of one worker has the done rows of a week, that of "
        f"the other one is empty. They take turns of {workload.slice_seconds:g} s, {workload.slices} of them each: "
        f"while one runs, the other one is stopped (SIGSTOP). Each has added {workload.warm_up} rows before. There is "
        "one round, as the rows take minutes to fill.",
        header=("", "jobs/s", "range"),
        rows=[(key, f"{speed.median:,.0f}", f"{speed.low:,.0f} to {speed.high:,.0f}") for key, speed in speeds.items()],
        target_results=[against(targets.LARGE_TABLE, speeds, empty, ours=filled)],
        failures=context.failures(results),
    )


def _measure(context: BenchContext, step: Step) -> SpeedPair:
    workload, large, empty = context.workload, context.tandem, context.second_tandem
    step.now(f"filling {workload.large_table:,} rows")
    _fill(large.postgres, workload.large_table)
    for one in (large, empty):
        one.enqueue("insert", workload.beside_bare)
    with empty.worker() as second, large.worker() as first:
        beside, ours = _warm(empty, second, workload.warm_up), _warm(large, first, workload.warm_up)
        run_interleaved(ours, beside, slices=workload.slices, seconds=workload.slice_seconds, step=step)
        for one in (large, empty):
            if one.postgres.number("SELECT count(*) FROM bench_rows") >= workload.beside_bare:
                raise ContenderError(
                    f"{workload.beside_bare} jobs are too few: they had ended before the last slice had"
                )
        return SpeedPair(ours.speed, beside.speed)


def _warm(contender: Contender, worker: Process, rows: int) -> InterleavedProgram:
    program = InterleavedProgram(worker, interleaved.count_rows(contender.postgres), "the worker")
    program.warm_up(rows)
    return program


def _fill(postgres: PostgresServer, rows: int) -> None:
    """Add done rows whose ids and times are spread over a week."""
    with postgres.engine.connect() as connection:
        for statement in (_FILL.format(rows=rows, week=_WEEK), "VACUUM (ANALYZE) tandem_jobs", "CHECKPOINT"):
            connection.exec_driver_sql(statement)

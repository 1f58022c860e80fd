"""Jobs that add a row: the queues beside each other."""

from functools import partial

from bench import targets
from bench.contenders import OBAN, TANDEM_AT_LEAST_ONCE, Contender
from bench.context import BenchContext, Measure, figures
from bench.drain import drain
from bench.process import ContenderError
from bench.progress import Step
from bench.section import Section
from bench.servers import PostgresServer
from bench.tables import against, chart, speed_rows
from bench.workload import Workload


def run(context: BenchContext) -> Section:
    workload = context.workload
    entrants: dict[str, Measure[float]] = {
        TANDEM_AT_LEAST_ONCE: partial(_measure, context.tandem, "insert_at_least_once", workload),
        **{one.key: partial(_measure, one, "insert", workload) for one in context.contenders},
    }
    results = context.alternate("jobs that add a row", entrants, "{:,.0f} jobs/s".format)
    speeds = figures(results)
    return Section(
        title="Jobs that add a row",
        method=f"{workload.inserts:,} jobs, each of which adds one row through the SQLAlchemy ORM and commits: BEGIN, "
        "INSERT, COMMIT. Every contender has a pool of 32 connections (asyncpg). Tandem's job sets its ledger row done "
        "before the COMMIT, so that it happens once; with `once=False` it does not, and may happen again, as all the "
        f"others' may. The time begins once {workload.warm_up} more rows are there, for which the connections were "
        "opened. The rows are counted afterwards.",
        header=("", "jobs/s", "range", "Tandem against it"),
        rows=speed_rows(context, speeds),
        target_results=[
            against(targets.INSERT_AGAINST_OBAN, speeds, OBAN.key, ours=TANDEM_AT_LEAST_ONCE),
            against(targets.INSERT_ONCE_AGAINST_OBAN, speeds, OBAN.key),
        ],
        chart=chart(context, "Jobs that add a row", "jobs/s", speeds),
        failures=context.failures(results),
    )


def _measure(contender: Contender, task: str, workload: Workload, step: Step) -> float:
    """Jobs a second."""
    count = workload.inserts + workload.warm_up
    contender.enqueue(task, count)
    speed = drain(contender, step, count, warm_up=workload.warm_up, completed=count)
    check_rows(contender.postgres, count)
    return speed


def check_rows(postgres: PostgresServer, count: int) -> None:
    """Raise `ContenderError` unless each of `count` rows was added."""
    rows = postgres.number("SELECT count(DISTINCT number) FROM bench_rows")
    if rows != count:
        raise ContenderError(f"{rows} of {count} rows are there")

"""Jobs that add a row: the queues beside each other."""

from functools import partial

from bench import bars
from bench.contenders import OBAN, TANDEM_AT_LEAST_ONCE, Contender
from bench.process import ContenderError
from bench.progress import Step
from bench.rundown import run_down
from bench.section import Section
from bench.servers import PostgresServer
from bench.sizes import Sizes
from bench.stage import Measure, Stage, figures
from bench.tables import against, chart, speed_rows


def run(stage: Stage) -> Section:
    sizes = stage.sizes
    entrants: dict[str, Measure[float]] = {
        TANDEM_AT_LEAST_ONCE: partial(_measure, stage.tandem, "insert_at_least_once", sizes),
        **{one.key: partial(_measure, one, "insert", sizes) for one in stage.contenders},
    }
    results = stage.alternate("jobs that add a row", entrants, "{:,.0f} jobs/s".format)
    speeds = figures(results)
    return Section(
        title="Jobs that add a row",
        method=f"{sizes.inserts:,} jobs, each of which adds one row through the SQLAlchemy ORM and commits: BEGIN, "
        "INSERT, COMMIT. Every contender has a pool of 32 connections (asyncpg). Tandem's job sets its ledger row done "
        "before the COMMIT, so that it happens once; with `once=False` it does not, and may happen again, as all the "
        f"others' may. The time begins once {sizes.warm_up} more rows are there, for which the connections were "
        "opened. The rows are counted afterwards.",
        header=("", "jobs/s", "range", "Tandem against it"),
        rows=speed_rows(stage, speeds),
        findings=[
            against(bars.INSERT_AGAINST_OBAN, speeds, OBAN.key, ours=TANDEM_AT_LEAST_ONCE),
            against(bars.INSERT_ONCE_AGAINST_OBAN, speeds, OBAN.key),
        ],
        chart=chart(stage, "Jobs that add a row", "jobs/s", speeds),
        failures=stage.failures(results),
    )


def _measure(contender: Contender, task: str, sizes: Sizes, step: Step) -> float:
    """Jobs a second."""
    count = sizes.inserts + sizes.warm_up
    contender.enqueue(task, count)
    speed = run_down(contender, step, count, warm_up=sizes.warm_up, completed=count)
    _check_rows(contender.postgres, count)
    return speed


def _check_rows(postgres: PostgresServer, count: int) -> None:
    """Raise `ContenderError` unless each of `count` rows was added."""
    rows = postgres.number("SELECT count(DISTINCT number) FROM bench_rows")
    if rows != count:
        raise ContenderError(f"{rows} of {count} rows are there")

"""Jobs that add a row: what a queue costs beside work on a database."""

import sys
from functools import partial

from bench import bars
from bench.contenders import OBAN, Contender
from bench.process import PATIENCE, ContenderError, Process
from bench.progress import Step
from bench.rundown import run_down
from bench.section import Section
from bench.servers import PostgresServer
from bench.sizes import Sizes
from bench.stage import Measure, Stage, figures
from bench.tables import against, chart, speed_rows

_BARE, _BARE_ONCE = "a bare loop, no queue", "a bare loop, the ledger's statement too"
_AT_LEAST_ONCE = "Tandem, @task(once=False)"


def run(stage: Stage) -> Section:
    sizes = stage.sizes
    entrants: dict[str, Measure[float]] = {one.key: partial(_measure, one, sizes) for one in stage.contenders}
    entrants[_AT_LEAST_ONCE] = partial(_measure, stage.tandem, sizes, task="insert_at_least_once")
    entrants[_BARE] = partial(_measure_bare_loop, stage.servers.postgres, sizes)
    entrants[_BARE_ONCE] = partial(_measure_bare_loop, stage.servers.postgres, sizes, ledger=True)
    results = stage.alternate("jobs that add a row", entrants, "{:,.0f} jobs/s".format, sizes.close_rounds)
    speeds = figures(results)
    return Section(
        title="Jobs that add a row",
        method=f"{sizes.inserts:,} jobs, each of which adds one row through the SQLAlchemy ORM and commits: BEGIN, "
        "INSERT, COMMIT. Every contender has a pool of 32 connections (asyncpg). The bare loop does the same with 32 "
        "sessions at once and nothing around them. Tandem's job sets its ledger row done before the COMMIT, so that "
        "it happens once; with `once=False` it does not. The time begins once "
        f"{sizes.first_inserts} more rows are there, for which the connections were opened. The rows are counted "
        "afterwards.",
        header=("", "jobs/s", "range", "Tandem against it"),
        rows=speed_rows(stage, speeds),
        findings=[
            against(bars.INSERT_AGAINST_BARE, speeds, _BARE, ours=_AT_LEAST_ONCE),
            against(bars.INSERT_ONCE_AGAINST_BARE, speeds, _BARE_ONCE),
            against(bars.INSERT_AGAINST_OBAN, speeds, OBAN.key),
        ],
        chart=chart(stage, "Jobs that add a row", "jobs/s", speeds),
        failures=stage.failures(results),
    )


def _measure(contender: Contender, sizes: Sizes, step: Step, *, task: str = "insert") -> float:
    count = sizes.inserts + sizes.first_inserts
    contender.enqueue(task, count)
    speed = run_down(contender, step, count, warm_up=sizes.first_inserts, completed=count)
    _check_rows(contender.postgres, count)
    return speed


def _measure_bare_loop(postgres: PostgresServer, sizes: Sizes, _step: Step, *, ledger: bool = False) -> float:
    command = [sys.executable, "-m", "bench.bare_loop", str(sizes.first_inserts), str(sizes.inserts)]
    if ledger:
        command.append("ledger")
    with Process(command, {"DATABASE_URL": postgres.url}) as loop:
        took = loop.told("took", timeout=PATIENCE + sizes.inserts / 100)
    _check_rows(postgres, sizes.first_inserts + sizes.inserts)
    return sizes.inserts / took


def _check_rows(postgres: PostgresServer, count: int) -> None:
    rows = postgres.number("SELECT count(DISTINCT number) FROM bench_rows")
    if rows != count:
        raise ContenderError(f"{rows} of {count} rows are there")

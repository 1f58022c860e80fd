"""Jobs that add a row beside a loop that does the same: what a queue costs."""

import sys
from functools import partial

from bench import bars
from bench.process import PATIENCE, Process
from bench.progress import Step
from bench.scenarios.insert import check_rows, measure
from bench.section import Section
from bench.servers import PostgresServer
from bench.sizes import Sizes
from bench.stage import Measure, Stage, figures
from bench.tables import against

_AT_LEAST_ONCE, _BARE = "Tandem, @task(once=False)", "a bare loop, no queue"
_ONCE, _BARE_ONCE = "Tandem, effects once", "a bare loop, the ledger's statement too"


def run(stage: Stage) -> Section:
    sizes, postgres = stage.sizes, stage.servers.postgres
    # Each beside what it is compared with: a machine's moods last for some seconds.
    entrants: dict[str, Measure[float]] = {
        _AT_LEAST_ONCE: partial(measure, stage.tandem, sizes, task="insert_at_least_once"),
        _BARE: partial(_measure_bare_loop, postgres, sizes),
        _BARE_ONCE: partial(_measure_bare_loop, postgres, sizes, ledger=True),
        _ONCE: partial(measure, stage.tandem, sizes),
    }
    results = stage.alternate("beside a bare loop", entrants, "{:,.0f} jobs/s".format, sizes.bare_rounds)
    speeds = figures(results)
    return Section(
        title="Jobs that add a row, beside a bare loop",
        method="The same jobs, and a loop that does what they do with 32 sessions at once and nothing around them. "
        "With `once=False` a job does not tell the ledger, and may happen again.",
        header=("", "jobs/s", "range"),
        rows=[(key, f"{speed.median:,.0f}", f"{speed.low:,.0f} to {speed.high:,.0f}") for key, speed in speeds.items()],
        findings=[
            against(bars.INSERT_AGAINST_BARE, speeds, _BARE, ours=_AT_LEAST_ONCE),
            against(bars.INSERT_ONCE_AGAINST_BARE, speeds, _BARE_ONCE, ours=_ONCE),
        ],
        failures=stage.failures(results),
    )


def _measure_bare_loop(postgres: PostgresServer, sizes: Sizes, _step: Step, *, ledger: bool = False) -> float:
    command = [sys.executable, "-m", "bench.bare_loop", str(sizes.first_inserts), str(sizes.inserts)]
    if ledger:
        command.append("ledger")
    with Process(command, {"DATABASE_URL": postgres.url}) as loop:
        took = loop.told("took", timeout=PATIENCE + sizes.inserts / 100)
    check_rows(postgres, sizes.first_inserts + sizes.inserts)
    return sizes.inserts / took

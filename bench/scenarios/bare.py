"""Jobs that add a row beside a loop that does the same: what a queue costs."""

import sys
from functools import partial

from bench import bars, by_turns
from bench.by_turns import Runner, Speeds, take_turns
from bench.contenders import TANDEM_AT_LEAST_ONCE
from bench.process import ContenderError, Process
from bench.progress import Step
from bench.section import Section
from bench.servers import PostgresServer
from bench.stage import Measure, Stage
from bench.tables import against

_BARE = "a bare loop, no queue"
_ONCE, _BARE_ONCE = "Tandem, effects once", "a bare loop, the ledger's statement too"


def run(stage: Stage) -> Section:
    sizes = stage.sizes
    pairs: dict[str, Measure[Speeds]] = {
        TANDEM_AT_LEAST_ONCE: partial(_measure, stage, "insert_at_least_once", with_ledger=False),
        _ONCE: partial(_measure, stage, "insert", with_ledger=True),
    }
    results = stage.alternate("beside a bare loop", pairs, str, sizes.bare_rounds)
    speeds = by_turns.figures(results, {TANDEM_AT_LEAST_ONCE: _BARE, _ONCE: _BARE_ONCE})
    return Section(
        title="Jobs that add a row, beside a bare loop",
        method="The same jobs, and a loop that does what they do with 32 sessions at once and nothing around them. "
        "With `once=False` a job does not tell the ledger, and may happen again. Worker and loop live at the "
        f"same time, each with its own database, and take turns of {sizes.turn:g} s, {sizes.turns} of them each a "
        "round: while one runs, the other one is stopped (SIGSTOP). Who begins changes from turn to turn. Each has "
        f"added {sizes.warm_up} rows before, for which its connections were opened. A speed is that of a round: "
        "the rows that were added in all turns, divided by their seconds. No two rows may be of one job, and the "
        "ledger must know of each that was to tell it.",
        header=("", "jobs/s", "range"),
        rows=[(key, f"{speed.median:,.0f}", f"{speed.low:,.0f} to {speed.high:,.0f}") for key, speed in speeds.items()],
        findings=[
            against(bars.INSERT_AGAINST_BARE, speeds, _BARE, ours=TANDEM_AT_LEAST_ONCE),
            against(bars.INSERT_ONCE_AGAINST_BARE, speeds, _BARE_ONCE, ours=_ONCE),
        ],
        failures=stage.failures(results),
    )


def _measure(stage: Stage, task: str, step: Step, *, with_ledger: bool) -> Speeds:
    sizes, tandem, aside = stage.sizes, stage.tandem, stage.servers.postgres_aside
    tandem.enqueue(task, sizes.beside_bare)
    command = [sys.executable, "-m", "bench.bare_loop", str(sizes.beside_bare), *(["ledger"] if with_ledger else [])]
    with Process(command, {"DATABASE_URL": aside.url}) as loop:
        bare = Runner(loop, by_turns.rows(aside), "the bare loop")
        bare.warm_up(sizes.warm_up)
        with tandem.worker() as worker:
            ours = Runner(worker, by_turns.rows(tandem.postgres), "the worker")
            ours.warm_up(sizes.warm_up)
            take_turns(ours, bare, turns=sizes.turns, seconds=sizes.turn, step=step)
            for postgres in (tandem.postgres, aside):
                _check(postgres, sizes.beside_bare, with_ledger=with_ledger)
            return Speeds(ours.speed, bare.speed)


def _check(postgres: PostgresServer, most: int, *, with_ledger: bool) -> None:
    """Raise `ContenderError` if a job has added two rows, or has not told the ledger though it was to."""
    rows = postgres.number("SELECT count(*) FROM bench_rows")
    if rows >= most:
        raise ContenderError(f"{most} jobs are too few: they had ended before the last turn had")
    if postgres.number("SELECT count(DISTINCT number) FROM bench_rows") != rows:
        raise ContenderError("some jobs have added more than one row")
    told = postgres.number("SELECT count(*) FROM tandem_jobs WHERE state = 'done'")
    if told != (rows if with_ledger else 0):
        raise ContenderError(f"the ledger knows of {told} jobs, and there are {rows} rows")

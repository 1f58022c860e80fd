"""Jobs that add a row beside a loop that does the same: what a queue costs."""

import sys
from functools import partial
from typing import NamedTuple

from bench import bars
from bench.by_turns import Runner, take_turns
from bench.contenders import TANDEM_AT_LEAST_ONCE
from bench.figures import Figures
from bench.process import ContenderError, Process
from bench.progress import Step
from bench.section import Section
from bench.servers import PostgresServer
from bench.stage import Measure, Stage
from bench.tables import against

_BARE = "a bare loop, no queue"
_ONCE, _BARE_ONCE = "Tandem, effects once", "a bare loop, the ledger's statement too"


class _Speeds(NamedTuple):
    """Of one round, in jobs a second."""

    ours: float
    bare: float


def run(stage: Stage) -> Section:
    sizes = stage.sizes
    pairs: dict[str, Measure[_Speeds]] = {
        TANDEM_AT_LEAST_ONCE: partial(_measure, stage, "insert_at_least_once", with_ledger=False),
        _ONCE: partial(_measure, stage, "insert", with_ledger=True),
    }
    results = stage.alternate("beside a bare loop", pairs, _shown, sizes.bare_rounds)
    speeds: dict[str, Figures] = {}
    for ours, bare in ((TANDEM_AT_LEAST_ONCE, _BARE), (_ONCE, _BARE_ONCE)):
        if rounds := results.values.get(ours):
            speeds[ours] = Figures.of(one.ours for one in rounds)
            speeds[bare] = Figures.of(one.bare for one in rounds)
    return Section(
        title="Jobs that add a row, beside a bare loop",
        method="The same jobs, and a loop that does what they do with 32 sessions at once and nothing around them. "
        "With `once=False` a job does not tell the ledger, and may happen again. Worker and loop live at the "
        f"same time, each with its own database, and take turns of {sizes.turn:g} s, {sizes.turns} of them each a "
        "round: while one runs, the other one is stopped (SIGSTOP). Who begins changes from turn to turn. Each has "
        f"added {sizes.first_inserts} rows before, for which its connections were opened. A speed is that of a round: "
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


def _measure(stage: Stage, task: str, step: Step, *, with_ledger: bool) -> _Speeds:
    sizes, tandem, aside = stage.sizes, stage.tandem, stage.servers.aside
    tandem.enqueue(task, sizes.beside_bare)
    command = [sys.executable, "-m", "bench.bare_loop", str(sizes.beside_bare), *(["ledger"] if with_ledger else [])]
    with Process(command, {"DATABASE_URL": aside.url}) as loop:
        bare = Runner(loop, aside, "the bare loop")
        bare.warm_up(sizes.first_inserts)
        with tandem.worker() as worker:
            ours = Runner(worker, tandem.postgres, "the worker")
            ours.warm_up(sizes.first_inserts)
            take_turns(ours, bare, turns=sizes.turns, seconds=sizes.turn, step=step)
            for postgres in (tandem.postgres, aside):
                _check(postgres, sizes.beside_bare, with_ledger=with_ledger)
            return _Speeds(ours.speed, bare.speed)


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


def _shown(speeds: _Speeds) -> str:
    return f"{speeds.ours:,.0f} jobs/s, the bare loop {speeds.bare:,.0f}: {speeds.ours / speeds.bare:.2f}"

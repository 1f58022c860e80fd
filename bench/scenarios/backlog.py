"""Whether what waits, or runs elsewhere, slows down what runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from bench import bars, by_turns
from bench.by_turns import Runner, Speeds, take_turns
from bench.contenders import Contender
from bench.process import ContenderError
from bench.progress import Step
from bench.section import Section
from bench.sizes import Sizes
from bench.stage import Measure, Stage
from bench.tables import against

_A_DAY = "86400"  # seconds


def run(stage: Stage) -> Section:
    sizes = stage.sizes
    queued, running = f"{sizes.backlog:,} jobs queued", f"{sizes.elsewhere:,} jobs running elsewhere"
    beside = {one: f"nothing else, by turns with {one}" for one in (queued, running)}
    pairs: dict[str, Measure[Speeds]] = {
        queued: partial(_behind_others, stage),
        running: partial(_while_others_run, stage),
    }
    results = stage.alternate("backlog", pairs, str, sizes.close_rounds)
    speeds = by_turns.figures(results, beside)
    return Section(
        title="Backlog",
        method=f"No-op jobs of Tandem: the first of {sizes.backlog:,} that are queued, or {sizes.beside_backlog:,} "
        f"while another worker holds {sizes.elsewhere:,} that do not end; and beside that, with a Redis of its own, "
        f"a worker with {sizes.beside_backlog:,} jobs and nothing else. The two take turns of {sizes.turn:g} s, "
        f"{sizes.backlog_turns} of them each a round: while one runs, the other one is stopped (SIGSTOP). Who begins "
        f"changes from turn to turn. Each has done {sizes.warm_up} jobs before.",
        header=("", "jobs/s", "range"),
        rows=[(key, f"{speed.median:,.0f}", f"{speed.low:,.0f} to {speed.high:,.0f}") for key, speed in speeds.items()],
        findings=[
            against(bars.BACKLOG_QUEUED, speeds, beside[queued], ours=queued),
            against(bars.BACKLOG_RUNNING, speeds, beside[running], ours=running),
        ],
        failures=stage.failures(results),
    )


def _behind_others(stage: Stage, step: Step) -> Speeds:
    backlog = stage.sizes.backlog
    step.now(f"queueing {backlog:,} jobs")
    stage.tandem.enqueue("noop", backlog)
    return _beside_nothing(stage, step, backlog)


def _while_others_run(stage: Stage, step: Step) -> Speeds:
    sizes, tandem = stage.sizes, stage.tandem
    tandem.enqueue("hold", sizes.elsewhere)
    with tandem.worker(BENCH_HOLD=_A_DAY, WORKER_CONCURRENCY=str(sizes.elsewhere), WORKER_ID="elsewhere") as elsewhere:
        for _ in range(sizes.elsewhere):
            elsewhere.told("held")
        # It has no free slots any more; those of the worker that is timed are all there is.
        tandem.enqueue("noop", sizes.beside_backlog)
        return _beside_nothing(stage, step, sizes.beside_backlog, others=sizes.elsewhere)


def _beside_nothing(stage: Stage, step: Step, queued: int, others: int = 0) -> Speeds:
    """Tandem with its queue as it is, by turns with one that has nothing else to do."""
    sizes, tandem, alone = stage.sizes, stage.tandem, stage.tandem_aside
    alone.enqueue("noop", sizes.beside_backlog)
    with _warm(alone, sizes, sizes.beside_backlog) as beside, _warm(tandem, sizes, queued, others) as ours:
        take_turns(ours, beside, turns=sizes.backlog_turns, seconds=sizes.turn, step=step)
        return Speeds(ours.speed, beside.speed)


@contextmanager
def _warm(contender: Contender, sizes: Sizes, queued: int, others: int = 0) -> Iterator[Runner]:
    """Its worker, standing still; in the end its jobs are counted. `others` are in the queue, too, and not for it.

    Raises:
        ContenderError: it had no job left at the end, or one has not ended well.
    """
    work = by_turns.jobs(contender, queued + others)
    with contender.worker() as worker:
        runner = Runner(worker, work, "the worker")
        runner.warm_up(sizes.warm_up)
        yield runner
        if work.done() >= queued:
            raise ContenderError(f"{queued} jobs are too few: they had ended before the last turn had")
        contender.check_completed(work.done())

"""Whether what waits, or runs elsewhere, slows down what runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from bench import interleaved, targets
from bench.contenders import Contender
from bench.context import BenchContext, Measure
from bench.interleaved import InterleavedProgram, SpeedPair, run_interleaved
from bench.process import ContenderError
from bench.progress import Step
from bench.section import Section
from bench.tables import against
from bench.workload import Workload

_A_DAY = "86400"  # seconds


def run(context: BenchContext) -> Section:
    workload = context.workload
    queued, running = f"{workload.backlog:,} jobs queued", f"{workload.running_elsewhere:,} jobs running elsewhere"
    beside = {one: f"nothing else, by turns with {one}" for one in (queued, running)}
    pairs: dict[str, Measure[SpeedPair]] = {
        queued: partial(_behind_others, context),
        running: partial(_while_others_run, context),
    }
    results = context.alternate("backlog", pairs, str, workload.close_rounds)
    speeds = interleaved.figures(results, beside)
    return Section(
        title="Backlog",
        method=f"No-op jobs of Tandem: the first of {workload.backlog:,} that are queued, or "
        f"{workload.beside_backlog:,} while another worker holds {workload.running_elsewhere:,} that do not end; and "
        f"beside that, with a Redis of its own, a worker with {workload.beside_backlog:,} jobs and nothing else. The "
        f"two take turns of {workload.slice_seconds:g} s, {workload.backlog_slices} of them each a round: while one "
        "runs, the other one is stopped (SIGSTOP). Who begins changes from turn to turn. "
        f"Each has done {workload.warm_up} jobs before.",
        header=("", "jobs/s", "range"),
        rows=[(key, f"{speed.median:,.0f}", f"{speed.low:,.0f} to {speed.high:,.0f}") for key, speed in speeds.items()],
        target_results=[
            against(targets.BACKLOG_QUEUED, speeds, beside[queued], ours=queued),
            against(targets.BACKLOG_RUNNING, speeds, beside[running], ours=running),
        ],
        failures=context.failures(results),
    )


def _behind_others(context: BenchContext, step: Step) -> SpeedPair:
    backlog = context.workload.backlog
    step.now(f"queueing {backlog:,} jobs")
    context.tandem.enqueue("noop", backlog)
    return _beside_nothing(context, step, backlog)


def _while_others_run(context: BenchContext, step: Step) -> SpeedPair:
    workload, tandem = context.workload, context.tandem
    tandem.enqueue("hold", workload.running_elsewhere)
    with tandem.worker(
        BENCH_HOLD=_A_DAY, WORKER_CONCURRENCY=str(workload.running_elsewhere), WORKER_ID="elsewhere"
    ) as elsewhere:
        for _ in range(workload.running_elsewhere):
            elsewhere.wait_for("held")
        # It has no free slots any more; those of the worker that is timed are all there is.
        tandem.enqueue("noop", workload.beside_backlog)
        return _beside_nothing(context, step, workload.beside_backlog, others=workload.running_elsewhere)


def _beside_nothing(context: BenchContext, step: Step, queued: int, others: int = 0) -> SpeedPair:
    """Measure Tandem with its queue as it is, interleaved with one that has nothing else to do."""
    workload, tandem, alone = context.workload, context.tandem, context.second_tandem
    alone.enqueue("noop", workload.beside_backlog)
    with _warm(alone, workload, workload.beside_backlog) as beside, _warm(tandem, workload, queued, others) as ours:
        run_interleaved(ours, beside, slices=workload.backlog_slices, seconds=workload.slice_seconds, step=step)
        return SpeedPair(ours.speed, beside.speed)


@contextmanager
def _warm(contender: Contender, workload: Workload, queued: int, others: int = 0) -> Iterator[InterleavedProgram]:
    """Its worker, standing still; in the end its jobs are counted. `others` are in the queue, too, and not for it.

    Raises:
        ContenderError: it had no job left at the end, or one has not ended well.
    """
    work = interleaved.count_jobs(contender, queued + others)
    with contender.worker() as worker:
        runner = InterleavedProgram(worker, work, "the worker")
        runner.warm_up(workload.warm_up)
        yield runner
        if work.done() >= queued:
            raise ContenderError(f"{queued} jobs are too few: they had ended before the last slice had")
        contender.check_completed(work.done())

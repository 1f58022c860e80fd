"""From the enqueue to the job's first line, on an idle worker."""

from functools import partial
from itertools import chain

from bench import targets
from bench.contenders import TANDEM, Contender
from bench.context import BenchContext
from bench.figures import Figures, percentile
from bench.progress import Step
from bench.section import Section
from bench.tables import chart
from bench.targets import TargetResult
from bench.workload import Workload

_WARM_UP = 3  # jobs that do not count: connections and caches are made for them


def run(context: BenchContext) -> Section:
    workload = context.workload
    entrants = {one.key: partial(_measure, one, workload) for one in context.contenders}
    results = context.alternate("idle latency", entrants, lambda waits: f"p50 {percentile(waits, 0.5) * 1000:.2f} ms")
    p50 = {key: Figures.of(percentile(waits, 0.5) * 1000 for waits in rounds) for key, rounds in results.values.items()}
    pooled = {key: list(chain(*rounds)) for key, rounds in results.values.items()}
    return Section(
        title="Idle enqueue-to-start",
        method=f"{workload.pings * workload.rounds} jobs, one every {workload.ping_interval:g} s on average at "
        "irregular times, to a "
        "worker that has nothing else to do. The time is that from before the call in the producer to the first line "
        f"of the job. The first {_WARM_UP} of a worker do not count.",
        header=("", "p50", "p99", "longest"),
        rows=[
            (context.title(key), *(f"{percentile(waits, share) * 1000:.2f} ms" for share in (0.5, 0.99, 1.0)))
            for key, waits in pooled.items()
        ],
        target_results=[TargetResult(targets.LATENCY, p50.get(TANDEM.key))],
        chart=chart(context, "Idle enqueue-to-start, p50 (less is better)", "ms", p50),
        failures=context.failures(results),
    )


def _measure(contender: Contender, workload: Workload, step: Step) -> list[float]:
    """Seconds that each job waited."""
    waits: list[float] = []
    with contender.worker() as worker, contender.process("ping", str(_WARM_UP), "0.3"):
        for _ in range(_WARM_UP):
            worker.wait_for("latency")
        with contender.process("ping", str(workload.pings), str(workload.ping_interval)):
            for number in range(workload.pings):
                waits.append(worker.wait_for("latency"))
                step.now(f"{number + 1} of {workload.pings}")
    return waits

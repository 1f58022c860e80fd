"""From the enqueue to the job's first line, on an idle worker."""

from functools import partial
from itertools import chain

from bench import bars
from bench.bars import Finding
from bench.contenders import TANDEM, Contender
from bench.figures import Figures, percentile
from bench.progress import Step
from bench.section import Section
from bench.sizes import Sizes
from bench.stage import Stage
from bench.tables import chart

_WARM_UP = 3  # jobs that do not count: connections and caches are made for them


def run(stage: Stage) -> Section:
    sizes = stage.sizes
    entrants = {one.key: partial(_measure, one, sizes) for one in stage.contenders}
    results = stage.alternate("idle latency", entrants, lambda waits: f"p50 {percentile(waits, 0.5) * 1000:.2f} ms")
    p50 = {key: Figures.of(percentile(waits, 0.5) * 1000 for waits in rounds) for key, rounds in results.values.items()}
    pooled = {key: list(chain(*rounds)) for key, rounds in results.values.items()}
    return Section(
        title="Idle enqueue-to-start",
        method=f"{sizes.pings * sizes.rounds} jobs, one every {sizes.pause:g} s on average at irregular times, to a "
        "worker that has nothing else to do. The time is that from before the call in the producer to the first line "
        f"of the job. The first {_WARM_UP} of a worker do not count.",
        header=("", "p50", "p99", "longest"),
        rows=[
            (stage.title(key), *(f"{percentile(waits, share) * 1000:.2f} ms" for share in (0.5, 0.99, 1.0)))
            for key, waits in pooled.items()
        ],
        findings=[Finding(bars.LATENCY, p50.get(TANDEM.key))],
        chart=chart(stage, "Idle enqueue-to-start, p50 (less is better)", "ms", p50),
        failures=stage.failures(results),
    )


def _measure(contender: Contender, sizes: Sizes, step: Step) -> list[float]:
    """Seconds that each job waited."""
    waits: list[float] = []
    with contender.worker() as worker, contender.process("ping", str(_WARM_UP), "0.3"):
        for _ in range(_WARM_UP):
            worker.told("latency")
        with contender.process("ping", str(sizes.pings), str(sizes.pause)):
            for number in range(sizes.pings):
                waits.append(worker.told("latency"))
                step.now(f"{number + 1} of {sizes.pings}")
    return waits

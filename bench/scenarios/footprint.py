"""Redis memory that a queued job takes."""

from functools import partial

from bench import targets
from bench.contenders import ARQ, Contender
from bench.context import BenchContext, figures
from bench.progress import Step
from bench.section import Section
from bench.tables import against


def run(context: BenchContext) -> Section:
    count = context.workload.footprint
    entrants = {one.key: partial(_measure, one, count) for one in context.contenders if one.on_redis}
    results = context.alternate("memory of a queued job", entrants, "{:,.0f} bytes".format)
    sizes = figures(results)
    return Section(
        title="Redis memory of a queued job",
        method=f"`used_memory` of `INFO` before and after {count:,} jobs with the same argument, an integer, are "
        "queued.",
        header=("", "bytes a job", "server"),
        rows=[
            (context.title(one.key), f"{sizes[one.key].median:,.0f}", one.redis.title)
            for one in context.contenders
            if one.key in sizes
        ],
        target_results=[against(targets.FOOTPRINT, sizes, ARQ.key)],
        failures=context.failures(results),
    )


def _measure(contender: Contender, count: int, _step: Step) -> float:
    before = contender.redis.memory()
    contender.enqueue("noop", count)
    return (contender.redis.memory() - before) / count

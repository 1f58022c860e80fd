"""Redis memory that a queued job takes."""

from functools import partial

from bench import targets
from bench.contenders import ARQ, Contender
from bench.progress import Step
from bench.section import Section
from bench.stage import Stage, figures
from bench.tables import against


def run(stage: Stage) -> Section:
    count = stage.workload.footprint
    entrants = {one.key: partial(_measure, one, count) for one in stage.contenders if one.on_redis}
    results = stage.alternate("memory of a queued job", entrants, "{:,.0f} bytes".format)
    sizes = figures(results)
    return Section(
        title="Redis memory of a queued job",
        method=f"`used_memory` of `INFO` before and after {count:,} jobs with the same argument, an integer, are "
        "queued.",
        header=("", "bytes a job", "server"),
        rows=[
            (stage.title(one.key), f"{sizes[one.key].median:,.0f}", one.redis.title)
            for one in stage.contenders
            if one.key in sizes
        ],
        target_results=[against(targets.FOOTPRINT, sizes, ARQ.key)],
        failures=stage.failures(results),
    )


def _measure(contender: Contender, count: int, _step: Step) -> float:
    before = contender.redis.memory()
    contender.enqueue("noop", count)
    return (contender.redis.memory() - before) / count

"""Whether a worker's memory grows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import psutil

from bench import targets
from bench.contenders import Contender
from bench.context import BenchContext
from bench.drain import drain
from bench.figures import Figures
from bench.process import Process
from bench.progress import Step
from bench.section import Section
from bench.targets import TargetResult

_WARM = 0.1  # the share of jobs after which memory is to be flat
_TENTHS = 10
_MEBIBYTE = 1024 * 1024


@dataclass(frozen=True)
class _Growth:
    """A worker's memory as it works."""

    count: int
    samples: list[tuple[float, int]] = field(default_factory=list)
    """The share of jobs that had ended, and the bytes that were resident."""

    def sample(self, worker: Process, unended: int) -> None:
        self.samples.append((1 - unended / self.count, psutil.Process(worker.pid).memory_info().rss))

    def at(self, share: float) -> int:
        """Bytes, once that share had ended."""
        return next((rss for done, rss in self.samples if done >= share), self.samples[-1][1])

    @property
    def largest_change(self) -> float:
        """In percent, after the first tenth, to what it was then."""
        warm = self.at(_WARM)
        later = [rss for done, rss in self.samples if done >= _WARM] or [warm]
        return 100 * max(abs(rss - warm) for rss in later) / warm


def run(context: BenchContext) -> Section:
    count = context.workload.memory
    entrants = {context.tandem.key: partial(_measure, context.tandem, count)}
    results = context.alternate("worker memory", entrants, lambda growth: f"{growth.largest_change:.1f} %", rounds=1)
    growths = results.values.get(context.tandem.key, [])
    change = Figures.of(growth.largest_change for growth in growths) if growths else None
    return Section(
        title="Worker memory",
        method=f"Resident memory of one worker over {count:,} no-op jobs, looked at several times a second. What "
        "counts is the largest change after the first tenth.",
        header=("jobs done", "resident"),
        rows=_rows(growths),
        target_results=[TargetResult(targets.MEMORY, change, "; ".join(results.failures.values()))],
        failures=context.failures(results),
    )


def _measure(tandem: Contender, count: int, step: Step) -> _Growth:
    step.now(f"queueing {count:,} jobs")
    tandem.enqueue("noop", count)
    growth = _Growth(count)
    drain(tandem, step, count, on_poll=growth.sample, completed=count)
    return growth


def _rows(growths: Sequence[_Growth]) -> list[Sequence[str]]:
    return [
        (f"{tenth / _TENTHS:.0%}", f"{growth.at(tenth / _TENTHS) / _MEBIBYTE:.1f} MiB")
        for growth in growths
        for tenth in range(_TENTHS + 1)
    ]

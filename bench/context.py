"""``BenchContext``: all that a scenario needs, and the order in which contenders are measured."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Generic, TypeVar

from bench.contenders import Contender
from bench.figures import Figures
from bench.machine import Disturbances, Steal
from bench.process import ContenderError
from bench.progress import Progress, Step
from bench.servers import Servers
from bench.workload import Workload

T = TypeVar("T")

MAX_STEAL = 0.05
"""The share of the cores' time above which the host has disturbed a measurement: it is repeated."""
MAX_REPEATED_SECONDS = 100.0
"""A measurement that takes longer is not repeated: that would take hours, and it averages disturbances out."""

Measure = Callable[[Step], T]


@dataclass(frozen=True)
class Results(Generic[T]):
    """The values of each entrant, one a round. An entrant that failed once has none."""

    values: dict[str, list[T]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def figures(results: Results[float]) -> dict[str, Figures]:
    """Each entrant's values as one quantity."""
    return {key: Figures.of(values) for key, values in results.values.items()}


@dataclass(frozen=True)
class BenchContext:
    """One run of the bench."""

    workload: Workload
    servers: Servers
    tandem: Contender
    peers: tuple[Contender, ...]
    absent: Mapping[str, str]
    """The reasons why libraries do not take part, by title."""
    progress: Progress
    disturbances: Disturbances = field(default_factory=Disturbances)

    @property
    def contenders(self) -> tuple[Contender, ...]:
        return (self.tandem, *self.peers)

    @property
    def second_tandem(self) -> Contender:
        """Tandem on the second servers, to be measured at the same time as `tandem`."""
        return replace(self.tandem, redis=self.servers.second_redis, postgres=self.servers.second_postgres)

    def title(self, key: str) -> str:
        """A contender's name with its version, or the key of another entrant."""
        return next((f"{one.title} {one.version}" for one in self.contenders if one.key == key), key)

    def alternate(
        self,
        scenario: str,
        entrants: Mapping[str, Measure[T]],
        shown: Callable[[T], str],
        rounds: int | None = None,
    ) -> Results[T]:
        """Measure each entrant once a round, on empty servers. Each round begins with another entrant."""
        results: Results[T] = Results()
        rounds = rounds or self.workload.rounds
        order = list(entrants)
        for number in range(rounds):
            for key in order:
                if key in results.failures:
                    continue
                title = f"{scenario}, round {number + 1} of {rounds}, {self.title(key)}"
                try:
                    value = self._measure_undisturbed(title, entrants[key], shown)
                except ContenderError as error:
                    results.failures[key] = str(error)
                    results.values.pop(key, None)
                    self.progress.say(f"{title}: FAILED: {error}")
                else:
                    results.values.setdefault(key, []).append(value)
            order.append(order.pop(0))
        return results

    def _measure_undisturbed(self, title: str, measure: Measure[T], shown: Callable[[T], str]) -> T:
        """Measure until the host does not disturb it; after the last attempt take the least disturbed value."""
        attempts: list[tuple[float, T]] = []
        while True:
            self.servers.empty()
            steal, begun = Steal(), time.monotonic()
            with self.progress.step(title) as step:
                value = measure(step)
            share = steal.share() or 0.0
            attempts.append((share, value))
            again = (
                share > MAX_STEAL
                and len(attempts) < self.workload.attempts
                and time.monotonic() - begun < MAX_REPEATED_SECONDS
            )
            disturbance = f"; the host took {share:.0%} of the cores' time{': once more' if again else ''}"
            self.progress.say(f"{title}: {shown(value)}{disturbance if share > MAX_STEAL else ''}")
            if not again:
                share, value = min(attempts, key=itemgetter(0))
                self.disturbances.note(len(attempts), share)
                return value

    def failures(self, results: Results[T]) -> list[str]:
        """The entrants that were not measured, with the reasons, a line each."""
        return [f"{self.title(key)}: {why}" for key, why in results.failures.items()]

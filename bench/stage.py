"""``Stage``: what a scenario works with, and the order in which contenders take turns."""

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

LOUD = 0.05
"""Of the cores' time: if the host takes more of it, a measurement is made again."""
LONG = 100.0
"""Seconds. What takes as long is not made again: it would take hours, and moments matter less to it."""

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
class Stage:
    """One run."""

    workload: Workload
    servers: Servers
    tandem: Contender
    peers: tuple[Contender, ...]
    absent: Mapping[str, str]
    """Why, by the title of each library that does not take part."""
    progress: Progress
    disturbances: Disturbances = field(default_factory=Disturbances)

    @property
    def contenders(self) -> tuple[Contender, ...]:
        return (self.tandem, *self.peers)

    @property
    def tandem_aside(self) -> Contender:
        """Tandem on servers of its own, to be measured at the same time."""
        return replace(self.tandem, redis=self.servers.redis_aside, postgres=self.servers.postgres_aside)

    def title(self, key: str) -> str:
        """A contender's name, with its version; another entrant is called by its key."""
        return next((f"{one.title} {one.version}" for one in self.contenders if one.key == key), key)

    def alternate(
        self,
        scenario: str,
        entrants: Mapping[str, Measure[T]],
        shown: Callable[[T], str],
        rounds: int | None = None,
    ) -> Results[T]:
        """Measure each entrant once a round, on empty servers; another one begins each round."""
        results: Results[T] = Results()
        rounds = rounds or self.workload.rounds
        order = list(entrants)
        for number in range(rounds):
            for key in order:
                if key in results.failures:
                    continue
                title = f"{scenario}, round {number + 1} of {rounds}, {self.title(key)}"
                try:
                    value = self._undisturbed(title, entrants[key], shown)
                except ContenderError as error:
                    results.failures[key] = str(error)
                    results.values.pop(key, None)
                    self.progress.say(f"{title}: FAILED: {error}")
                else:
                    results.values.setdefault(key, []).append(value)
            order.append(order.pop(0))
        return results

    def _undisturbed(self, title: str, measure: Measure[T], shown: Callable[[T], str]) -> T:
        """The first value that the host has not disturbed; of as many as may be made, the least disturbed."""
        tries: list[tuple[float, T]] = []
        while True:
            self.servers.empty()
            steal, begun = Steal(), time.monotonic()
            with self.progress.step(title) as step:
                value = measure(step)
            share = steal.share() or 0.0
            tries.append((share, value))
            again = share > LOUD and len(tries) < self.workload.attempts and time.monotonic() - begun < LONG
            loud = f"; the host took {share:.0%} of the cores' time{': once more' if again else ''}"
            self.progress.say(f"{title}: {shown(value)}{loud if share > LOUD else ''}")
            if not again:
                share, value = min(tries, key=itemgetter(0))
                self.disturbances.note(len(tries), share)
                return value

    def failures(self, results: Results[T]) -> list[str]:
        """Whoever was not measured, and why, a line each."""
        return [f"{self.title(key)}: {why}" for key, why in results.failures.items()]

"""``Stage``: what a scenario works with, and the order in which contenders take turns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from bench.contenders import Contender
from bench.figures import Figures
from bench.process import ContenderError
from bench.progress import Progress, Step
from bench.servers import Servers
from bench.sizes import Sizes

T = TypeVar("T")

Measure = Callable[[Step], T]


@dataclass(frozen=True)
class Results(Generic[T]):
    """What each entrant achieved, a value a round; whoever failed once is not among them."""

    values: dict[str, list[T]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def figures(results: Results[float]) -> dict[str, Figures]:
    """Each entrant's values as one quantity."""
    return {key: Figures.of(values) for key, values in results.values.items()}


@dataclass(frozen=True)
class Stage:
    """One run."""

    sizes: Sizes
    servers: Servers
    tandem: Contender
    peers: tuple[Contender, ...]
    absent: Mapping[str, str]
    """Why, by the title of each library that does not take part."""
    progress: Progress

    @property
    def contenders(self) -> tuple[Contender, ...]:
        return (self.tandem, *self.peers)

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
        rounds = rounds or self.sizes.rounds
        order = list(entrants)
        for number in range(rounds):
            for key in order:
                if key in results.failures:
                    continue
                title = f"{scenario}, round {number + 1} of {rounds}, {self.title(key)}"
                try:
                    self.servers.empty()
                    with self.progress.step(title) as step:
                        value = entrants[key](step)
                except ContenderError as error:
                    results.failures[key] = str(error)
                    results.values.pop(key, None)
                    self.progress.say(f"{title}: FAILED: {error}")
                else:
                    results.values.setdefault(key, []).append(value)
                    self.progress.say(f"{title}: {shown(value)}")
            order.append(order.pop(0))
        return results

    def failures(self, results: Results[T]) -> list[str]:
        """Whoever was not measured, and why, a line each."""
        return [f"{self.title(key)}: {why}" for key, why in results.failures.items()]

"""How much is measured."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """Numbers of jobs, unless it says otherwise."""

    rounds: int
    close_rounds: int
    """Where a bar is a fraction of something measured beside it: a machine's ups and downs alone come to more."""
    bare_rounds: int
    """Beside a bare loop, likewise."""
    tries: int
    """Of a measurement that the host disturbs."""
    noop: int
    warm_up: int
    """Before the time begins."""
    inserts: int
    beside_bare: int
    """More than are done in all turns beside a bare loop."""
    turns: int
    """That each of the two gets in a round beside a bare loop."""
    turn: float
    """Seconds."""
    batch: int
    one_by_one: int
    trips: int
    pings: int
    """A round."""
    pause: float
    """Seconds between two pings, on average."""
    backlog: int
    """Queued."""
    elsewhere: int
    """Running on another worker."""
    beside_backlog: int
    """More than are done in all turns with the others in the way."""
    backlog_turns: int
    """That each of the two gets in a round."""
    memory: int
    waiting: int
    footprint: int
    patience: float
    """Seconds that peers get to run a job again."""


FULL = Sizes(
    rounds=3,
    close_rounds=5,
    bare_rounds=9,
    tries=3,
    noop=20_000,  # as in streaQ's benchmark
    warm_up=600,
    inserts=6_000,
    beside_bare=60_000,
    turns=24,
    turn=0.5,
    batch=20_000,
    one_by_one=2_000,
    trips=100,
    pings=50,
    pause=0.3,
    backlog=1_000_000,
    elsewhere=1_000,
    beside_backlog=100_000,
    backlog_turns=8,
    memory=1_000_000,
    waiting=16_000,
    footprint=20_000,
    patience=330.0,  # arq takes 310
)
QUICK = Sizes(
    rounds=1,
    close_rounds=1,
    bare_rounds=1,
    tries=1,
    noop=64,
    warm_up=64,
    inserts=256,
    beside_bare=4_000,
    turns=2,
    turn=0.1,
    batch=64,
    one_by_one=16,
    trips=50,
    pings=3,
    pause=0.05,
    backlog=10_000,
    elsewhere=20,
    beside_backlog=8_000,
    backlog_turns=2,
    memory=1_000,
    waiting=200,
    footprint=64,
    patience=2.0,
)

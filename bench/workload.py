"""``Workload``: how many jobs, rounds and seconds each scenario measures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """Numbers of jobs, unless a field says otherwise."""

    rounds: int
    close_rounds: int
    """Rounds where a target is a ratio close to 1, which the noise of a machine alone may exceed."""
    bare_rounds: int
    """Rounds beside a bare loop, likewise."""
    attempts: int
    """Attempts at a measurement that the host disturbs."""
    noop: int
    warm_up: int
    """Jobs before the time begins."""
    inserts: int
    beside_bare: int
    """More than end in all slices beside a bare loop."""
    slices: int
    """Slices of time that each of the two programs gets in a round beside a bare loop."""
    slice_seconds: float
    batch: int
    one_by_one: int
    round_trips: int
    pings: int
    """Pings in a round."""
    ping_interval: float
    """Seconds between two pings, on average."""
    backlog: int
    """Jobs that are queued."""
    running_elsewhere: int
    """Jobs that run on another worker."""
    beside_backlog: int
    """More than end in all slices beside a backlog."""
    backlog_slices: int
    """Slices of time that each of the two programs gets in a round."""
    large_table: int
    """Done rows in the ledger."""
    observed: int
    """No-op jobs that are drained while somebody looks at the dashboard."""
    memory: int
    waiting: int
    footprint: int
    recovery_timeout: float
    """Seconds in which a peer must run the job of a killed worker again."""


FULL = Workload(
    rounds=3,
    close_rounds=5,
    bare_rounds=9,
    attempts=3,
    noop=20_000,  # as in streaQ's benchmark
    warm_up=600,
    inserts=6_000,
    beside_bare=60_000,
    slices=24,
    slice_seconds=0.5,
    batch=20_000,
    one_by_one=2_000,
    round_trips=100,
    pings=50,
    ping_interval=0.3,
    backlog=1_000_000,
    running_elsewhere=1_000,
    beside_backlog=100_000,
    backlog_slices=8,
    large_table=10_000_000,
    observed=200_000,
    memory=1_000_000,
    waiting=16_000,
    footprint=20_000,
    recovery_timeout=330.0,  # arq takes 310
)
QUICK = Workload(
    rounds=1,
    close_rounds=1,
    bare_rounds=1,
    attempts=1,
    noop=64,
    warm_up=64,
    inserts=256,
    beside_bare=4_000,
    slices=2,
    slice_seconds=0.1,
    batch=64,
    one_by_one=16,
    round_trips=50,
    pings=3,
    ping_interval=0.05,
    backlog=10_000,
    running_elsewhere=20,
    beside_backlog=8_000,
    backlog_slices=2,
    large_table=20_000,
    observed=2_000,
    memory=1_000,
    waiting=200,
    footprint=64,
    recovery_timeout=2.0,
)

"""The scenarios, by name, in the order in which they run."""

from collections.abc import Callable, Mapping

from bench.context import BenchContext
from bench.scenarios import (
    backlog,
    bare,
    chunks,
    enqueue,
    footprint,
    insert,
    large_table,
    latency,
    memory,
    noop,
    observed,
    processes,
    recovery,
)
from bench.section import Section

SCENARIOS: Mapping[str, Callable[[BenchContext], Section]] = {
    "noop": noop.run,
    "insert": insert.run,
    "bare": bare.run,
    "chunks": chunks.run,
    "enqueue": enqueue.run,
    "latency": latency.run,
    "processes": processes.run,
    "footprint": footprint.run,
    "backlog": backlog.run,
    "large_table": large_table.run,
    "observed": observed.run,
    "memory": memory.run,
    "recovery": recovery.run,
}

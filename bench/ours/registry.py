"""What the measured worker runs."""

TASKS = (
    "bench.ours.tasks.noop",
    "bench.ours.tasks.insert",
    "bench.ours.tasks.insert_at_least_once",
    "bench.ours.tasks.insert_in_chunks",
    "bench.ours.tasks.wait",
    "bench.ours.tasks.hold",
    "bench.ours.tasks.ping",
)

"""The tasks that the worker runs: one absolute dotted path a line."""

TASKS = (
    "tasks.census.scan_folder",
    "tasks.census.index_file",
    "tasks.census.refresh_totals",
)

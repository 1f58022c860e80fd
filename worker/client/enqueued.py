"""Counts of the jobs that this process has enqueued, for its metrics."""

import threading
from collections import Counter

from worker.new_job import NewJob

_counts: Counter[tuple[str, str]] = Counter()
_counting = threading.Lock()  # threads with event loops of their own enqueue, too


def count_enqueued(jobs: list[NewJob]) -> None:
    """Count the jobs of one call, all of one task and queue, that exist by now."""
    if jobs:
        with _counting:
            _counts[jobs[0].queue, jobs[0].task] += len(jobs)


def enqueued_counts() -> dict[tuple[str, str], int]:
    """The number of jobs that this process has enqueued, by queue and task.

    A job that was enqueued in a transaction counts when the transaction is committed.
    """
    with _counting:
        return dict(_counts)

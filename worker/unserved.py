"""Queues that no worker serves: what is put there waits in silence, so it is said, once for each queue of a process."""

import logging
from collections.abc import Iterable

logger = logging.getLogger("worker")

_told: set[str] = set()
"""The queues of which it was said, and those that this process serves itself."""


def tell_unserved(queue: str) -> None:
    """Warn that no worker that is well serves `queue`, unless it was said before."""
    if queue in _told:
        return
    _told.add(queue)
    logger.warning("no worker serves the queue %s now: its jobs wait until one does (WORKER_QUEUES)", queue)


def serve(queues: Iterable[str]) -> None:
    """Take note that this process is a worker of `queues`: while it starts, Redis has not heard of it."""
    _told.update(queues)

"""Queues that no worker serves: what is put there waits in silence, so it is said, once for each queue of a process."""

import logging
import math
import time
from collections.abc import Iterable

logger = logging.getLogger("worker")

_LOOK_AGAIN = 60.0  # seconds: the script that enqueues looks, and need not do so for each job
_next_look: dict[str, float] = {}
"""By queue the next time, by the monotonic clock; never where it was said, or where this process is a worker of it."""


def is_time_to_look(queue: str) -> bool:
    """Whether to ask if a worker serves `queue`; takes note that this is done."""
    now = time.monotonic()
    if now < _next_look.get(queue, 0.0):
        return False
    _next_look[queue] = now + _LOOK_AGAIN
    return True


def tell_unserved(queue: str) -> None:
    """Warn that no worker that is well serves `queue`; nobody looks again."""
    _next_look[queue] = math.inf
    logger.warning("no worker serves the queue %s now: its jobs wait until one does (WORKER_QUEUES)", queue)


def serve(queues: Iterable[str]) -> None:
    """Take note that this process is a worker of `queues`: while it starts, Redis has not heard of it."""
    _next_look.update(dict.fromkeys(queues, math.inf))

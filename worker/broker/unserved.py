"""Queues that no worker serves: jobs wait there in silence, so the log says it, once for each queue of a process.

A worker that is being started or replaced has not told Redis of itself yet. So one look without a worker says nothing;
a second one, some time later, does.
"""

import logging
import math
import time
from collections.abc import Iterable

logger = logging.getLogger("worker")

_LOOK_AGAIN = 60.0  # seconds: the script that enqueues looks, and need not do so for each job
_STARTING = 15.0  # seconds in which a worker that is started or replaced has told Redis of itself
_next_look: dict[str, float] = {}
"""By queue the next time, by the monotonic clock; never where it was said, or where this process is a worker of it."""
_doubtful: set[str] = set()
"""The queues that had no worker at the last look."""


def is_time_to_look(queue: str) -> bool:
    """Whether to ask if a worker serves `queue`; takes note that this is done."""
    now = time.monotonic()
    if now < _next_look.get(queue, 0.0):
        return False
    _next_look[queue] = now + _LOOK_AGAIN
    return True


def take_note(queue: str, *, is_served: bool) -> None:
    """Take note of what a look has found; warn once `queue` has had no worker at two looks one after the other."""
    if is_served:
        _doubtful.discard(queue)
    elif queue not in _doubtful:
        _doubtful.add(queue)
        _next_look[queue] = time.monotonic() + _STARTING
    else:
        _next_look[queue] = math.inf
        logger.warning("no worker serves the queue %s: its jobs wait until one does (WORKER_QUEUES)", queue)


def serve(queues: Iterable[str]) -> None:
    """Take note that this process is a worker of `queues`: while it starts, Redis has not heard of it."""
    _next_look.update(dict.fromkeys(queues, math.inf))

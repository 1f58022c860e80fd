"""A warning for queues that no worker serves, where jobs would wait without an error.

It is logged once for each queue of a process. A worker that starts or is replaced has not written its records yet, so
the warning needs two checks without a worker, some time apart.
"""

import logging
import math
import time
from collections.abc import Iterable

logger = logging.getLogger("worker")

_CHECK_INTERVAL = 60.0  # seconds: the script that enqueues checks, and need not do so for each job
_START_TIME = 15.0  # seconds within which a worker that starts or is replaced has written its records
_next_check: dict[str, float] = {}
"""By queue the monotonic time of the next check. Infinite after the warning, or if this process serves the queue."""
_without_worker: set[str] = set()
"""The queues that had no worker at the last check."""


def is_check_due(queue: str) -> bool:
    """Whether to check now that a worker serves `queue`. The next check is then due after an interval."""
    now = time.monotonic()
    if now < _next_check.get(queue, 0.0):
        return False
    _next_check[queue] = now + _CHECK_INTERVAL
    return True


def record_check(queue: str, *, is_served: bool) -> None:
    """Record the result of a check, and warn if two checks in a row have found no worker of `queue`."""
    if is_served:
        _without_worker.discard(queue)
    elif queue not in _without_worker:
        _without_worker.add(queue)
        _next_check[queue] = time.monotonic() + _START_TIME
    else:
        _next_check[queue] = math.inf
        logger.warning("no worker serves the queue %s: its jobs wait until one does (WORKER_QUEUES)", queue)


def serve(queues: Iterable[str]) -> None:
    """Record that this process is a worker of `queues`, as Redis does not show that while it starts."""
    _next_check.update(dict.fromkeys(queues, math.inf))

"""When a job is enqueued: with its id what it is known by, so no two jobs of one id may have the same."""

from collections import OrderedDict

from worker.broker.records import now_ms

_REMEMBERED = 10_000  # ids
_last: OrderedDict[str, int] = OrderedDict()
"""By id the latest enqueue time that it was given in this process; the id that was used last is at the end."""


def enqueue_time(job_id: str) -> int:
    """The time, in milliseconds since the epoch; for an id that this process has used, later than the one before.

    The clock alone does not make sure of that: tests freeze it, and an administrator sets it back.
    """
    moment = max(now_ms(), _last.pop(job_id, -1) + 1)
    _last[job_id] = moment
    if len(_last) > _REMEMBERED:
        _last.popitem(last=False)  # in one step, as threads may do so at the same time
    return moment

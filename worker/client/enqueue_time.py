"""Enqueue times. A job is known by its id and its enqueue time, so two jobs of one id need different times."""

from collections import OrderedDict

from worker.broker.records import now_ms

_REMEMBERED = 10_000  # ids
_last: OrderedDict[str, int] = OrderedDict()
"""By id the latest enqueue time that this process has given. The last used id is at the end."""


def enqueue_time(job_id: str) -> int:
    """The enqueue time of a new job, in milliseconds since the epoch. Later than any time before it for the same id.

    The clock alone does not ensure that: tests freeze it, and an administrator sets it back.
    """
    moment = max(now_ms(), _last.pop(job_id, -1) + 1)
    _last[job_id] = moment
    if len(_last) > _REMEMBERED:
        _last.popitem(last=False)  # one atomic step, as several threads may do so at the same time
    return moment

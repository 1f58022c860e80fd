"""The reruns of one attempt: how many are free, and the pauses before them."""

import asyncio
import time

from db.errors import DatabaseUnreachableError
from db.transient import Transient, sqlstate
from worker.aio.backoff import Backoff
from worker.engine.outcome import Rerun
from worker.message import Message

_CONFLICT_RERUNS = 5
_LOSSES = 5
_JITTER = 0.5, 1.0  # of each pause
_AWAY = frozenset({"53300", "57P03"})  # too many connections; the server is starting or stopping
_BUSY_RERUNS = 5
_BUSY_BACKOFF = Backoff(1.0, 16.0)  # seconds
_BUSY_FORGOTTEN = 600.0  # seconds after which the count of a job is dropped: it must have ended on another worker
LONGEST_PAUSE = 2.0
"""The longest pause, in seconds, between two attempts while the database is away."""
_READ_ONLY_LIMIT = 60.0  # seconds that a failover may take; after that, the task wrote to a replica by mistake


class RerunPolicy:
    """Counts the reruns of one attempt.

    1. While the database takes no connections, a job waits for it without a limit: that is not the job's fault.
    2. Repeated losses of the connection may be the job's fault: its statement takes longer than the driver waits, or it
       kills its backend. So losses are limited, as conflicts are.

    A job that waits for its database keeps its slot. So a worker whose database is away claims nothing more.
    """

    def __init__(self) -> None:
        self._conflicts = 0
        self._losses = 0
        self._conflict_backoff = Backoff(0.02, 0.32, jitter=_JITTER)
        self._outage_backoff = Backoff(0.05, LONGEST_PAUSE, jitter=_JITTER)
        self._read_only_until: float | None = None

    def allows(self, rerun: Rerun) -> bool:
        """Whether the attempt may run once more, at no cost."""
        match rerun.why:
            case Transient.CONFLICT | Transient.STALE_PLAN:
                self._conflicts += 1
                return self._conflicts <= _CONFLICT_RERUNS
            case Transient.READ_ONLY:
                if self._read_only_until is None:
                    self._read_only_until = time.monotonic() + _READ_ONLY_LIMIT
                return time.monotonic() < self._read_only_until
            case Transient.LOST:
                self._losses += not _is_away(rerun.error)
                return self._losses <= _LOSSES
            case Transient.ENDED:
                return False

    async def pause(self, why: Transient) -> None:
        """Wait before the next rerun, longer each time, with jitter."""
        is_conflict = why in (Transient.CONFLICT, Transient.STALE_PLAN)
        backoff = self._conflict_backoff if is_conflict else self._outage_backoff
        await asyncio.sleep(backoff.next())


class BusyRows:
    """Counts, for each job, how often another transaction held its row in the ledger.

    Such a job is put back, so that its slot is free, and its next attempt starts a new `RerunPolicy`. So the count is
    kept here, in the worker's memory; workers do not share it.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], tuple[int, float]] = {}

    def put_off(self, message: Message) -> float | None:
        """Return the seconds until the job may run again at no cost; None if it has used up its free reruns."""
        now = time.monotonic()
        key = (message.job_id, message.enqueued_at)
        times, _ = self._counts.pop(key, (0, now))
        self._counts[key] = times + 1, now
        self._drop_old_counts(now)
        return None if times >= _BUSY_RERUNS else _BUSY_BACKOFF.after(times)

    def _drop_old_counts(self, now: float) -> None:
        for key, (_, last) in list(self._counts.items()):  # the oldest first
            if now - last <= _BUSY_FORGOTTEN:
                return
            del self._counts[key]


def _is_away(error: BaseException) -> bool:
    """Whether the server refused the connection. A lost connection does not count."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(_is_away, error.exceptions))
    if isinstance(error, DatabaseUnreachableError):
        return not error.was_connected
    return sqlstate(error) in _AWAY

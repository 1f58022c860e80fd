"""``UnknownJobs``: put back jobs whose task or arguments this worker does not know.

1. Such a job is put back, at no cost: a deploy that adds the task or the argument may be under way.
2. The task may belong to another service whose workers serve the same queue. While one of them lives, the job waits.
3. The job fails once no living worker has known its task for `unknown_for` seconds.

Redis is asked only for unknown jobs, at most once a second for each queue.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import NamedTuple

from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.broker.worker_records import WorkerRecords
from worker.engine.execution import Execution
from worker.engine.outcome import Outcome, OutcomeKind
from worker.errors import UnknownArgumentsError, UnknownTaskError

_FIRST_DELAY, _LONGEST_DELAY = 1.0, 30.0  # seconds until a job that no worker knows is due again
_LONGEST_DELAY_ELSEWHERE = 2.0  # seconds, where another worker knows it: each time either of the two may claim it
_CACHED = 1.0  # seconds for which an answer of Redis is used

_Key = tuple[bytes, int]
"""A job's id and enqueue time: a later job may use the id again."""


@dataclass(slots=True)
class _Met:
    """The times at which this worker met a job, by the monotonic clock."""

    first: float
    unknown_since: float | None = None
    """Since when no living worker has known the job."""


class _Announced(NamedTuple):
    """The tasks that the living workers of a queue have announced, and when Redis said so."""

    at: float
    tasks: frozenset[str]


class UnknownJobs:
    """Decides the outcomes of jobs that this worker does not know.

    Args:
        unknown_for: seconds after which a job that no living worker knows fails.
    """

    def __init__(self, broker: Broker, *, unknown_for: float) -> None:
        self._workers = WorkerRecords(broker.connections)
        self._unknown_for = unknown_for
        self._met: dict[_Key, _Met] = {}
        self._cache: dict[str, _Announced] = {}
        self._asking = asyncio.Lock()

    async def judge(self, execution: Execution, outcome: Outcome) -> Outcome:
        """Decide the outcome of a postponed job: an unknown job is put back, or fails; others stay as they were."""
        error = outcome.error
        if not isinstance(error, UnknownTaskError | UnknownArgumentsError):
            return outcome
        now, message = time.monotonic(), execution.message
        key = execution.claim.raw_id, message.enqueued_at
        met = self._met.setdefault(key, _Met(now))
        if isinstance(error, UnknownTaskError) and await self._is_known_elsewhere(message.task, execution.queue):
            met.unknown_since = None
            longest = _LONGEST_DELAY_ELSEWHERE
        else:
            met.unknown_since = met.unknown_since or now
            longest = min(_LONGEST_DELAY, self._unknown_for)
            if now - met.unknown_since >= self._unknown_for:
                self._met.pop(key, None)
                return Outcome.failed(error.for_good(self._unknown_for))
        self._drop_old_jobs(now)
        return Outcome(OutcomeKind.POSTPONED, error=error, delay=min(max(now - met.first, _FIRST_DELAY), longest))

    async def _is_known_elsewhere(self, task: str, queue: str) -> bool:
        """Whether a living worker of the queue knows the task. If Redis does not answer, one may."""
        try:
            return task in await self._announced(queue)
        except (RedisError, OSError):
            return True

    async def _announced(self, queue: str) -> frozenset[str]:
        async with self._asking:  # one request serves all jobs that were claimed together
            cached = self._cache.get(queue)
            if cached is None or time.monotonic() - cached.at > _CACHED:
                cached = self._cache[queue] = _Announced(time.monotonic(), await self._workers.announced(queue))
            return cached.tasks

    def _drop_old_jobs(self, now: float) -> None:
        """Forget jobs that must have ended on another worker."""
        while self._met:
            key, met = next(iter(self._met.items()))  # the one met first
            if now - met.first <= 2 * self._unknown_for + 60:
                return
            del self._met[key]

"""``Finisher``: outcomes -> Redis, in batches.

An outcome stays here, and its lease stays held, until Redis has taken it.
"""

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable
from itertools import islice

from redis.exceptions import RedisError

from worker.engine.coalescing import coalesce
from worker.engine.held import HeldJob, HeldJobs, Phase
from worker.engine.outcome import Kind, Outcome
from worker.exchange import Settlement
from worker.queue import Queue

logger = logging.getLogger("worker")

Encode = Callable[[HeldJob, Outcome], Settlement]

_ABANDONED, _FINISHING = Kind.ABANDONED, Phase.FINISHING
_BATCH = 500  # outcomes a round trip
_ENOUGH = 16  # likewise: for so many it is made at once
_BATCH_BYTES = 8 * 1024 * 1024  # likewise, of results


class Finisher:
    """Reports what became of held jobs.

    Args:
        encode: makes an outcome into what Redis is told.
    """

    def __init__(self, queue: Queue, held: HeldJobs, encode: Encode) -> None:
        self._queue = queue
        self._held = held
        self._encode = encode
        self._waiting: defaultdict[str, deque[tuple[HeldJob, Settlement]]] = defaultdict(deque)
        self._something = asyncio.Event()
        self._nothing = asyncio.Event()
        self._nothing.set()

    def report(self, job: HeldJob, outcome: Outcome) -> None:
        """Take an outcome; it is written soon, together with others."""
        if outcome.kind is _ABANDONED:
            self._held.remove(job)
            return
        job.phase = _FINISHING
        self._waiting[job.queue].append((job, self._encode(job, outcome)))
        self._nothing.clear()
        self._something.set()

    async def run(self) -> None:
        """Write outcomes as they come. A write that fails is repeated by the next run."""
        while True:
            await self._something.wait()
            while any(self._waiting.values()):
                await coalesce(lambda: sum(map(len, self._waiting.values())) >= _ENOUGH)
                await self._write_all()
            self._something.clear()
            self._nothing.set()

    async def flushed(self) -> None:
        """Wait until Redis has taken every outcome."""
        await self._nothing.wait()

    async def _write_all(self) -> None:
        """One round trip a queue. One that fails keeps its outcomes, and does not keep those of the others waiting."""
        failed: RedisError | OSError | None = None
        for queue, waiting in list(self._waiting.items()):
            try:
                await self._write(queue, waiting)
            except (RedisError, OSError) as error:
                failed = error
        if failed is not None:
            raise failed

    async def _write(self, queue: str, waiting: deque[tuple[HeldJob, Settlement]]) -> None:
        batch = _first(waiting)
        if not batch:
            return
        replies = await self._queue.finish(queue, [settlement for _, settlement in batch])
        for (job, _), ours in zip(batch, replies, strict=True):
            waiting.popleft()
            self._held.remove(job)
            if not ours:
                logger.warning("%s ended here too late: another worker has taken it over", job.job_id)


def _first(waiting: deque[tuple[HeldJob, Settlement]]) -> list[tuple[HeldJob, Settlement]]:
    """As many as one round trip may carry."""
    batch: list[tuple[HeldJob, Settlement]] = []
    size = 0
    for entry in islice(waiting, _BATCH):
        size += len(entry[1].value)
        if batch and size > _BATCH_BYTES:
            break
        batch.append(entry)
    return batch

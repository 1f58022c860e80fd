"""``Finisher``: outcomes -> Redis, in batches.

An outcome stays here, and its lease stays held, until Redis has taken it.
"""

import asyncio
import logging
from collections.abc import Callable
from itertools import groupby

from worker.engine.held import HeldJob, HeldJobs, Phase
from worker.engine.outcome import Kind, Outcome
from worker.queue import Queue, Settlement

logger = logging.getLogger("worker")

Encode = Callable[[HeldJob, Outcome], Settlement]

_BATCH = 500  # outcomes a round trip


class Finisher:
    """Reports what became of held jobs.

    Args:
        encode: makes an outcome into what Redis is told.
    """

    def __init__(self, queue: Queue, held: HeldJobs, encode: Encode) -> None:
        self._queue = queue
        self._held = held
        self._encode = encode
        self._waiting: list[tuple[HeldJob, Settlement]] = []
        self._something = asyncio.Event()
        self._nothing = asyncio.Event()
        self._nothing.set()

    def report(self, job: HeldJob, outcome: Outcome) -> None:
        """Take an outcome; it is written soon, together with others."""
        if outcome.kind is Kind.ABANDONED:
            self._held.remove(job)
            return
        job.phase = Phase.FINISHING
        self._waiting.append((job, self._encode(job, outcome)))
        self._nothing.clear()
        self._something.set()

    async def run(self) -> None:
        """Write outcomes as they come. A write that fails is repeated by the next run."""
        while True:
            await self._something.wait()
            while self._waiting:
                await self._write(self._waiting[:_BATCH])
            self._something.clear()
            self._nothing.set()

    async def flushed(self) -> None:
        """Wait until Redis has taken every outcome."""
        await self._nothing.wait()

    async def _write(self, batch: list[tuple[HeldJob, Settlement]]) -> None:
        batch.sort(key=_queue_of)
        for queue, group in groupby(batch, key=_queue_of):
            jobs, settlements = zip(*group, strict=True)
            for job, ours in zip(jobs, await self._queue.finish(queue, settlements), strict=True):
                self._held.remove(job)
                if not ours:
                    logger.warning("%s ended here, but another worker holds it by now", job.job_id)
            written = set(map(id, jobs))
            self._waiting = [waiting for waiting in self._waiting if id(waiting[0]) not in written]


def _queue_of(waiting: tuple[HeldJob, Settlement]) -> str:
    return waiting[0].queue

"""``Relay``: pending rows that Redis has lost, or never had -> queue.

1. It takes rows that nobody has looked after for a while, puts them off, and COMMITS: no row stays locked while Redis
   is asked.
2. What Redis does not know is read again, as a job may have finished meanwhile, and published if it is pending still.
3. Each queue has an epoch: a key that goes when Redis loses its memory. Then every pending row is looked after at once,
   so that losing all of Redis costs seconds, and what is merely waiting costs next to nothing.
"""

import asyncio
import logging
import random
from collections.abc import Sequence

from worker.ledger import Ending, Ledger, State, Unpublished
from worker.queue import NEVER, Entry, Queue

logger = logging.getLogger("worker")

_PAUSE = 1.0  # seconds between two rounds, with jitter, so that workers take turns
_BATCH = 500  # rows a round

_Key = tuple[str, int]
"""A row's id and enqueue time."""


class Relay:
    """Publishes what the ledger says is to run.

    Args:
        queues: those whose epochs it watches; rows of others are looked after when their time has come.
    """

    def __init__(self, queue: Queue, ledger: Ledger, queues: Sequence[str]) -> None:
        self._queue = queue
        self._ledger = ledger
        self._queues = tuple(queues)
        self._epochs: dict[str, bytes] = {}

    async def run(self) -> None:
        """Look after pending rows, round after round."""
        while True:
            await self._watch_epochs()
            if await self._round() < _BATCH:
                await asyncio.sleep(_PAUSE * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret

    async def _watch_epochs(self) -> None:
        """Let all rows of a queue be due whose Redis has lost its memory."""
        for name in self._queues:
            epoch = await self._queue.epoch(name)
            if epoch is None:
                # In this order: whoever dies in between leaves the key missing, and the next one begins anew.
                put_off = await self._ledger.make_all_due(name)
                epoch = await self._queue.begin_epoch(name)
            elif self._epochs.get(name, epoch) != epoch:
                put_off = await self._ledger.make_all_due(name)
            else:
                put_off = 0
            if put_off:
                logger.warning("Redis has lost the memory of %s: %d pending jobs are looked after", name, put_off)
            self._epochs[name] = epoch

    async def _round(self) -> int:
        """Look after a batch of rows; how many there were."""
        taken = await self._ledger.take_due(_BATCH)
        by_queue: dict[str, list[_Key]] = {}
        for job_id, enqueued_at, name in taken:
            by_queue.setdefault(name, []).append((job_id, enqueued_at))
        for name, keys in by_queue.items():
            known = await self._queue.known(name, [job_id for job_id, _ in keys])
            unknown = [key for key, is_known in zip(keys, known, strict=True) if not is_known]
            if unknown:
                await self._publish(name, await self._ledger.unpublished(unknown))
        return len(taken)

    async def _publish(self, name: str, rows: Sequence[Unpublished]) -> None:
        """Publish those that may run still; the others are over."""
        live = [row for row in rows if not row.expired]
        published = await self._queue.publish([entry(row) for row in live])
        if any(published):
            logger.info("%s: %d pending jobs were not in Redis, and are now", name, sum(published))
        expired = [ending(row, State.EXPIRED) for row in rows if row.expired]
        if expired:
            await self._ledger.settle(expired)


def entry(row: Unpublished) -> Entry:
    """A pending row as a job to be queued."""
    patience = NEVER if row.patience is None else row.patience
    return Entry(row.id, row.payload, row.queue, row.delay, expires=patience)


def ending(row: Unpublished, state: State) -> Ending:
    """The end of a job that was never run."""
    return Ending(row.id, row.enqueued_at, row.task, row.queue, state, tries=0)

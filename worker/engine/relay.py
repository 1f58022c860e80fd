"""``Relay``: pending rows that Redis has lost, or never had -> queue.

1. It goes through the rows whose time has come, lap after lap, and rests between laps for as long as makes them a small
   part of its time. It writes none of them: a job that runs at REPEATABLE READ could not set such a row done any more.
2. What Redis does not know is read again, as a job may have finished meanwhile, and published if it is pending still.
3. Each queue has an epoch: a key that goes when Redis loses its memory. Then every pending row is looked after at once,
   so that losing all of Redis costs seconds, and what is merely waiting costs next to nothing.
"""

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Sequence

from worker.broker.broker import Broker
from worker.broker.epochs import Epochs
from worker.broker.errors import ResponseError
from worker.errors import WorkerError
from worker.ledger import FinalRow, Ledger, RelayRow, State
from worker.new_job import NewJob

logger = logging.getLogger("worker")

_PAUSE = 1.0  # seconds between two rounds, with jitter, so that workers take turns
_BATCH = 500  # rows a round
_SHORTEST_REST, _LONGEST_REST = 5.0, 600.0  # seconds between two laps
_REST_FOR_LAP = 20  # otherwise the relays would do nothing but read a backlog of a million rows
_START = (-1, "")

_Row = tuple[str, int, str]
"""A row's id, enqueue time and queue."""


class Relay:
    """Publishes what the ledger says is to run.

    Args:
        queues: those whose epochs it watches; rows of others are looked after when their time has come.
    """

    def __init__(self, broker: Broker, ledger: Ledger, queues: Sequence[str]) -> None:
        self._broker = broker
        self._epochs = Epochs(broker.connections)
        self._ledger = ledger
        self._queues = tuple(queues)
        self._trusted: dict[str, bytes] = {}
        self._lap = _Lap()

    async def run(self) -> None:
        """Look after pending rows, round after round."""
        while True:
            await self._watch_epochs()
            if await self._round() < _BATCH:
                await asyncio.sleep(_PAUSE * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret

    async def recover(self) -> int:
        """Look after every pending row of its queues now; how many were published."""
        return await self._sweep(self._queues)

    async def _watch_epochs(self) -> None:
        """Look after all rows of the queues whose Redis has lost its memory."""
        epochs = await self._epochs.current(self._queues)
        lost = [name for name, epoch in epochs.items() if not self._trusts(name, epoch)]
        if not lost:
            return
        begun = {name: await self._epochs.begin(name) for name in lost}
        if published := await self._sweep(lost):
            logger.warning("Redis had lost %d pending jobs of %s, and has them again", published, ", ".join(lost))
        for name, epoch in begun.items():
            # Only now: a relay that dies in between leaves an epoch that is not trusted. An epoch that Redis has lost
            # meanwhile does not count either, as the jobs that were published in it are lost, too.
            if await self._epochs.complete(name, epoch):
                self._trusted[name] = epoch

    def _trusts(self, name: str, epoch: bytes | None) -> bool:
        """Whether Redis has what it had at the last look; at the first, another worker's word is taken for it."""
        return epoch is not None and self._trusted.setdefault(name, epoch) == epoch

    async def _sweep(self, names: Sequence[str]) -> int:
        """Look after every pending row of these queues; how many were published.

        It writes nothing to the ledger, so several workers may do it at once. Each begins somewhere else, so that they
        share the work.
        """
        published = 0
        middle = secrets.token_hex(2)
        for after, end in ((middle, None), ("", middle)):
            last = after
            while (end is None or last <= end) and (rows := await self._ledger.pending_after(last, names, _BATCH)):
                published += await self._look_after(rows)
                last = rows[-1][0]
        return published

    async def _round(self) -> int:
        """Look after a batch of rows whose time has come; how many there were."""
        due = await self._ledger.due(self._lap.position(), _BATCH)
        # Before they are looked after: rows that cannot be published must not be in the way of others.
        self._lap.pass_over(due)
        if published := await self._look_after([(job_id, enqueued_at, name) for _, job_id, enqueued_at, name in due]):
            logger.info("%d pending jobs were not in Redis, and are now", published)
        return len(due)

    async def _look_after(self, rows: Sequence[_Row]) -> int:
        """Publish what Redis does not know; how many that were."""
        published = 0
        by_queue: dict[str, list[tuple[str, int]]] = {}
        for job_id, enqueued_at, name in rows:
            by_queue.setdefault(name, []).append((job_id, enqueued_at))
        refused: ResponseError | None = None
        for name, keys in by_queue.items():
            try:
                published += await self._look_after_one(name, keys)
            except ResponseError as error:  # what is wrong with one queue must not keep the others waiting
                refused = error
        if refused is not None:
            raise refused
        return published

    async def _look_after_one(self, name: str, keys: Sequence[tuple[str, int]]) -> int:
        """`_look_after` the rows of one queue."""
        try:
            known = await self._broker.exists(name, [job_id for job_id, _ in keys])
        except WorkerError as error:  # a queue that this Redis cannot have; the others need not wait for it
            logger.error("%d pending jobs cannot be queued: %s", len(keys), error)  # noqa: TRY400 - it says all
            return 0
        unknown = [key for key, is_known in zip(keys, known, strict=True) if not is_known]
        published = 0
        if unknown:
            for batch in await self._ledger.in_batches(unknown, _BATCH):
                published += await self._publish(await self._ledger.unpublished(batch))
        return published

    async def _publish(self, rows: Sequence[RelayRow]) -> int:
        """Publish those that may run still, and expire those that may not; how many were published."""
        published = await self._broker.publish([new_job(row) for row in rows if not row.expired])
        expired = [ending(row, State.EXPIRED) for row in rows if row.expired]
        if expired:
            await self._ledger.complete(expired)
        return sum(published)


class _Lap:
    """The position of a relay among the rows whose time has come."""

    def __init__(self) -> None:
        self._position: tuple[int, str] = _START
        self._began = 0.0
        self._next = 0.0
        self._goes_on = False

    def position(self) -> tuple[int, str]:
        """After which time and id it goes on: from the start, when it is time for the next lap.

        Between two laps it looks after what has become due since.
        """
        now = time.monotonic()
        if not self._goes_on and now >= self._next:
            self._position, self._began, self._goes_on = _START, now, True
        return self._position

    def pass_over(self, rows: Sequence[tuple[int, str, int, str]]) -> None:
        """Go on after these rows; where they are few, the lap is over."""
        if rows:
            self._position = rows[-1][:2]
        if self._goes_on and len(rows) < _BATCH:
            now = time.monotonic()
            self._next = now + min(max((now - self._began) * _REST_FOR_LAP, _SHORTEST_REST), _LONGEST_REST)
            self._goes_on = False


def new_job(row: RelayRow) -> NewJob:
    """A pending row as a job to be queued: in its old place, and with what is left of the time that it may wait."""
    overdue = max(-row.delay, 0)
    expires = None if row.patience is None else max(row.patience - overdue, 1)
    return NewJob(row.id, row.payload, row.task, row.queue, row.enqueued_at, delay=row.delay, expires=expires)


def ending(row: RelayRow, state: State) -> FinalRow:
    """The end of a job that was never run."""
    return FinalRow(row.id, row.enqueued_at, row.task, row.queue, state, tries=0)

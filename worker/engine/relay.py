"""``Relay``: publish pending rows that are not in Redis.

1. The relay checks the rows that are due, lap after lap. It rests between laps, so that laps take a small part of its
   time. A check writes nothing: a job that runs at REPEATABLE READ could no longer set a changed row done.
2. The relay reads a row again if its job is not in Redis, as the job may have finished meanwhile. It publishes the row
   if it is still pending.
3. Each queue has an epoch: a key that is gone when Redis has lost its data. Then the relay checks every pending row at
   once. So losing all of Redis costs seconds, and jobs that only wait cost almost nothing.
4. Before a new epoch is complete, the relay restores the pauses of the queues. Until then `guarded` keeps the claimer
   from queues that were paused: Redis no longer says so. Otherwise the relay compares the pauses once a lap.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence

from db.text.plural import plural
from worker.broker.broker import Broker
from worker.broker.epochs import Epochs
from worker.broker.errors import ResponseError
from worker.control.queue_pauses import QueuePauses
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
    """Publishes pending rows that are not in Redis.

    Args:
        queues: the queues whose epochs are watched. Rows of other queues are checked when they are due.
    """

    def __init__(self, broker: Broker, ledger: Ledger, queues: Sequence[str]) -> None:
        self._broker = broker
        self._epochs = Epochs(broker.connections)
        self._ledger = ledger
        self._queues = tuple(queues)
        self._pauses = QueuePauses(broker, ledger)
        self._trusted: dict[str, bytes] = {}
        self._lap = _Lap()
        self.guarded = frozenset(queues)
        """The queues of which nothing may be claimed while they have no complete epoch: those that were paused when the
        relay looked last. At first all, as any may be paused."""
        self.on_unguarded: Callable[[], None] = lambda: None
        """Called when `guarded` may have become smaller."""
        self.published = 0
        """Jobs that were not in Redis and that this relay has published."""

    async def run(self) -> None:
        """Check pending rows, for ever."""
        while True:
            await self._watch_epochs()
            if self._lap.is_due:
                await self._pauses.restore(self._queues)
            if await self._round() < _BATCH:
                await asyncio.sleep(_PAUSE * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret

    async def recover(self) -> int:
        """Check every pending row of the relay's queues now. Return how many were published."""
        return await self._sweep(self._queues)

    async def _watch_epochs(self) -> None:
        """Check all pending rows of the queues whose Redis has lost its data."""
        epochs, paused = await self._epochs.current_and_paused(self._queues)
        lost = [name for name, epoch in epochs.items() if not self._trusts(name, epoch)]
        if not lost:
            self.guarded = frozenset(paused)
            return
        begun = {name: await self._epochs.begin(name) for name in lost}
        self.guarded = frozenset([*paused, *await self._pauses.restore(lost)])
        self.on_unguarded()
        if published := await self._sweep(lost):
            logger.warning(
                "Redis had lost %s of %s; published again", plural(published, "pending job"), ", ".join(lost)
            )
        for name, epoch in begun.items():
            # The epoch is completed last: no worker trusts the incomplete epoch of a worker that died during the sweep.
            # If Redis has lost the epoch meanwhile, it may have lost these jobs, too: the next round sweeps again.
            if await self._epochs.complete(name, epoch):
                self._trusted[name] = epoch

    def _trusts(self, name: str, epoch: bytes | None) -> bool:
        """Whether the epoch is unchanged since the last round. In the first round, every complete epoch counts."""
        return epoch is not None and self._trusted.setdefault(name, epoch) == epoch

    async def _sweep(self, names: Sequence[str]) -> int:
        """Check every pending row of these queues. Return how many were published.

        Several workers may sweep at once. Each starts at the id of a random pending row, so that they share the work. A
        random id would not do: all ids of one hour begin alike.
        """
        published = 0
        middle = await self._ledger.pending_at(random.randrange(1000))  # noqa: S311 - not a secret
        for after, end in ((middle, None), ("", middle)):
            last = after
            while (end is None or last <= end) and (rows := await self._ledger.pending_after(last, names, _BATCH)):
                published += await self._publish_missing(rows)
                last = rows[-1][0]
        return published

    async def _round(self) -> int:
        """Check a batch of rows that are due. Return how many there were."""
        due = await self._ledger.due(self._lap.position(), _BATCH)
        # Advance first: rows that cannot be published must not block others.
        self._lap.advance(due)
        if published := await self._publish_missing(
            [(job_id, enqueued_at, name) for _, job_id, enqueued_at, name in due]
        ):
            missing = plural(published, "pending job that was", "pending jobs that were")
            logger.info("published %s not in Redis", missing)
        return len(due)

    async def _publish_missing(self, rows: Sequence[_Row]) -> int:
        """Publish the rows that are not in Redis. Return how many were published."""
        published = 0
        by_queue: dict[str, list[tuple[str, int]]] = {}
        for job_id, enqueued_at, name in rows:
            by_queue.setdefault(name, []).append((job_id, enqueued_at))
        refused: ResponseError | None = None
        for name, keys in by_queue.items():
            try:
                published += await self._publish_missing_of(name, keys)
            except ResponseError as error:  # a failure of one queue must not block the others
                refused = error
        if refused is not None:
            raise refused
        return published

    async def _publish_missing_of(self, name: str, keys: Sequence[tuple[str, int]]) -> int:
        """Publish the rows of one queue that are not in Redis. Return how many were published."""
        try:
            exists = await self._broker.exists(name, [job_id for job_id, _ in keys])
        except WorkerError as error:  # this Redis cannot hold the queue; go on with the others
            logger.error("cannot publish %s: %s", plural(len(keys), "pending job"), error)  # noqa: TRY400 - the message is enough
            return 0
        missing = [key for key, is_queued in zip(keys, exists, strict=True) if not is_queued]
        published = 0
        if missing:
            for batch in await self._ledger.in_batches(missing, _BATCH):
                published += await self._publish(await self._ledger.unpublished(batch))
        return published

    async def _publish(self, rows: Sequence[RelayRow]) -> int:
        """Publish the rows that have not expired, and make the others final. Return how many were published."""
        published = await self._broker.publish([new_job(row) for row in rows if not row.expired])
        self.published += sum(published)
        expired = [final_row(row, State.EXPIRED) for row in rows if row.expired]
        if expired:
            await self._ledger.complete(expired)
        return sum(published)


class _Lap:
    """The relay's position among the rows that are due."""

    def __init__(self) -> None:
        self._position: tuple[int, str] = _START
        self._began = 0.0
        self._next = 0.0
        self._is_running = False

    @property
    def is_due(self) -> bool:
        """Whether it is time for the next lap."""
        return not self._is_running and time.monotonic() >= self._next

    def position(self) -> tuple[int, str]:
        """The due time and id after which the next batch begins; the start, when it is time for the next lap.

        Between two laps the relay checks only rows that have become due since.
        """
        if self.is_due:
            self._position, self._began, self._is_running = _START, time.monotonic(), True
        return self._position

    def advance(self, rows: Sequence[tuple[int, str, int, str]]) -> None:
        """Move the position behind these rows. A batch that is not full ends the lap."""
        if rows:
            self._position = rows[-1][:2]
        if self._is_running and len(rows) < _BATCH:
            now = time.monotonic()
            self._next = now + min(max((now - self._began) * _REST_FOR_LAP, _SHORTEST_REST), _LONGEST_REST)
            self._is_running = False


def new_job(row: RelayRow) -> NewJob:
    """The new job of a pending row, at its old place in the queue, with the rest of its expiry time."""
    overdue = max(-row.delay, 0)
    expires = None if row.patience is None else max(row.patience - overdue, 1)
    return NewJob(row.id, row.payload, row.task, row.queue, row.enqueued_at, delay=row.delay, expires=expires)


def final_row(row: RelayRow, state: State) -> FinalRow:
    """The final row of a job that never ran."""
    return FinalRow(row.id, row.enqueued_at, row.task, row.queue, state, tries=0)

"""Which slots of scheduled tasks have been queued, and queueing them once, whichever worker comes first.

Redis remembers the last slot of each task. Where there is a ledger, a slot is a row besides, of its own id and time: a
Redis that has lost its memory neither forgets a slot nor lets one run twice.

Services that share a Redis may have tasks of one name, each on a queue of its own: these are different schedules.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from worker.exchange import NEVER, Entry, Slot, to_ms
from worker.ledger import Ledger, Pending
from worker.message import encode
from worker.queue import Queue
from worker.task import Task

_EPOCH = datetime.fromtimestamp(0, UTC)
_ARQ_QUEUE = "arq:queue"


class Passed(NamedTuple):
    """A slot of a task, and whether it is to run: otherwise it is only taken note of."""

    task: Task[..., Any]
    moment: datetime
    runs: bool = True


class Slots:
    """The slots that Redis knows of.

    Args:
        home: the queue of tasks that name none, for all workers of a service: ``WORKER_QUEUE``.
    """

    def __init__(self, queue: Queue, home: str) -> None:
        self._queue = queue
        self._home = home

    async def last(self, task: Task[..., Any], queue: str) -> datetime | None:
        """The last slot of a task that was queued."""
        return (await self._queue.last_slots(queue)).get(self._schedule_of(task))

    async def put(self, queue: str, slots: Sequence[Passed]) -> None:
        """Queue the jobs of slots, oldest first, unless that was done before."""
        await self._queue.add_slots(queue, [self._slot(slot) for slot in slots])

    def _slot(self, passed: Passed) -> Slot:
        at = to_ms(passed.moment)
        payload = encode(passed.task.name, b"{}", at) if passed.runs else b""
        return Slot(self._schedule_of(passed.task), at, self._job_id(passed.task, at), payload)

    def _job_id(self, task: Task[..., Any], moment: object) -> str:
        return f"cron:{self._schedule_of(task)}:{moment}"

    def _schedule_of(self, task: Task[..., Any]) -> str:
        """What tells a schedule from others in this Redis.

        By the queue that is declared, not the one that it goes to: workers of one service may serve different queues.
        """
        queue = task.options.queue or self._home
        return task.name if queue == _ARQ_QUEUE else f"{queue}/{task.name}"


class LedgerSlots(Slots):
    """The slots that Redis or the ledger knows of."""

    def __init__(self, queue: Queue, home: str, ledger: Ledger) -> None:
        super().__init__(queue, home)
        self._ledger = ledger

    async def last(self, task: Task[..., Any], queue: str) -> datetime | None:
        written = await self._ledger.last_enqueued(task.name, self._job_id(task, ""))
        known = (await super().last(task, queue), None if written is None else _EPOCH + timedelta(milliseconds=written))
        return max((moment for moment in known if moment is not None), default=None)

    async def put(self, queue: str, slots: Sequence[Passed]) -> None:
        rows = [self._row(slot, queue) for slot in slots if slot.runs]
        new = await self._ledger.add_new(rows) if rows else []
        # What Redis does not take now, the relay publishes.
        await super().put(queue, [slot._replace(runs=False) for slot in slots])
        await self._queue.publish([Entry(row.id, row.payload, queue, due=row.due, expires=NEVER) for row in new])

    def _row(self, passed: Passed, queue: str) -> Pending:
        name, at = passed.task.name, to_ms(passed.moment)
        payload = encode(name, b"{}", at, in_ledger=True)
        return Pending(self._job_id(passed.task, at), at, name, queue, payload, due=at)

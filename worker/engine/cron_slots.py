"""The cron slots that have been queued, and queueing each of them once.

Redis remembers the last slot of each task. Where there is a ledger, a slot is a row besides, of its own id and time: a
Redis that has lost its memory neither forgets a slot nor lets one run twice.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from worker.broker.broker import Broker
from worker.broker.cron_slots import CronSlots
from worker.broker.records import CronSlot
from worker.ledger import Ledger
from worker.message import encode
from worker.new_job import NewJob
from worker.task import Task

_EPOCH = datetime.fromtimestamp(0, UTC)


class SlotHistory:
    """The slots that Redis knows of."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._slots = CronSlots(broker.connections)

    async def now(self, queue: str) -> datetime:
        """The clock that slots go by, in UTC: that of the server that holds `queue`."""
        return await self._slots.now(queue)

    async def last(self, task: Task[..., object], queue: str) -> datetime | None:
        """The last slot of a task that was queued."""
        return (await self._slots.last(queue)).get(task.name)

    async def put(self, queue: str, slots: Sequence[CronSlot]) -> None:
        """Queue the jobs of slots, oldest first, unless that was done before."""
        await self._slots.add(queue, slots)


class LedgerSlotHistory(SlotHistory):
    """The slots that Redis or the ledger knows of."""

    def __init__(self, broker: Broker, ledger: Ledger) -> None:
        super().__init__(broker)
        self._ledger = ledger

    async def last(self, task: Task[..., object], queue: str) -> datetime | None:
        written = await self._ledger.last_enqueued(task.name, slot_id(task.name, ""))
        known = (await super().last(task, queue), None if written is None else _EPOCH + timedelta(milliseconds=written))
        return max((moment for moment in known if moment is not None), default=None)

    async def put(self, queue: str, slots: Sequence[CronSlot]) -> None:
        jobs = [_new_job(slot, queue) for slot in slots if slot.payload]
        new = await self._ledger.add_new(jobs) if jobs else []
        # What Redis does not take now, the relay publishes.
        await super().put(queue, [slot._replace(payload=b"") for slot in slots])
        await self._broker.publish(new)


def slot_id(task: str, moment: object) -> str:
    """The id of a slot's job."""
    return f"cron:{task}:{moment}"


def _new_job(slot: CronSlot, queue: str) -> NewJob:
    payload = encode(slot.task, b"{}", slot.moment, in_ledger=True)
    return NewJob(slot.job_id, payload, slot.task, queue, slot.moment, due=slot.moment)

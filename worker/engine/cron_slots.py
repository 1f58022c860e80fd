"""The history of cron slots: read the last slot of a task, and queue each slot once.

Redis keeps the last slot of each task. With a ledger, each slot is also a job row with its own id and time. So no slot
is missed and none runs twice, even if Redis loses its data.
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
    """The cron slots that Redis has recorded."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._slots = CronSlots(broker.connections)

    async def now(self, queue: str) -> datetime:
        """Return the time by the clock for cron slots, in UTC. It is the clock of the server that holds `queue`."""
        return await self._slots.now(queue)

    async def last(self, task: Task[..., object], queue: str) -> datetime | None:
        """Return the last slot of a task that was queued."""
        return (await self._slots.last(queue)).get(task.name)

    async def put(self, queue: str, slots: Sequence[CronSlot]) -> None:
        """Queue the jobs of these slots, oldest first. Slots that were queued before are skipped."""
        await self._slots.add(queue, slots)


class LedgerSlotHistory(SlotHistory):
    """The cron slots that Redis or the ledger has recorded."""

    def __init__(self, broker: Broker, ledger: Ledger) -> None:
        super().__init__(broker)
        self._ledger = ledger

    async def last(self, task: Task[..., object], queue: str) -> datetime | None:
        written = await self._ledger.last_enqueued(task.name, slot_id(task.name, ""))
        in_ledger = None if written is None else _EPOCH + timedelta(milliseconds=written)
        moments = (await super().last(task, queue), in_ledger)
        return max((moment for moment in moments if moment is not None), default=None)

    async def put(self, queue: str, slots: Sequence[CronSlot]) -> None:
        jobs = [_new_job(slot, queue) for slot in slots if slot.payload]
        new = await self._ledger.add_new(jobs) if jobs else []
        # The relay publishes the jobs that do not reach Redis now.
        await super().put(queue, [slot._replace(payload=b"") for slot in slots])
        await self._broker.publish(new)


def slot_id(task: str, moment: object) -> str:
    """Return the id of a slot's job."""
    return f"cron:{task}:{moment}"


def _new_job(slot: CronSlot, queue: str) -> NewJob:
    payload = encode(slot.task, b"{}", slot.moment, in_ledger=True)
    return NewJob(slot.job_id, payload, slot.task, queue, slot.moment, due=slot.moment)

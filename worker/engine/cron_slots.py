"""The history of cron slots: read the last slot of a task, and queue each slot once.

Redis keeps the last slot of each task. With a ledger, each slot is also a job row with its own id and time. So no slot
is missed and none runs twice, even if Redis loses its data. Slots whose jobs share an id are rows of that id.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from worker.broker.broker import Broker
from worker.broker.cron_slots import CronSlots
from worker.broker.records import CronSlot
from worker.client.enqueued import count_enqueued
from worker.engine.cron_series import CronSeries
from worker.ledger import IdRange, Ledger
from worker.message import encode
from worker.new_job import NewJob, slot_id

_EPOCH = datetime.fromtimestamp(0, UTC)


class SlotHistory:
    """The cron slots that Redis has recorded."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._slots = CronSlots(broker.connections)

    async def now(self, queue: str) -> datetime:
        """Return the time by the clock for cron slots, in UTC. It is the clock of the server that holds `queue`."""
        return await self._slots.now(queue)

    async def last(self, series: Sequence[CronSeries], queue: str) -> dict[str, datetime]:
        """Return the last slots that were queued, of those of the series that have one, by the names of the series."""
        return await self._slots.last_of(queue, [each.name for each in series])

    async def put(self, queue: str, slots: Sequence[CronSlot]) -> None:
        """Queue the jobs of these slots, oldest first. Slots that were queued before are skipped."""
        new = await self._slots.add(queue, slots)
        for slot, is_new in zip(slots, new, strict=True):
            if is_new and slot.payload:
                count_enqueued([_new_job(slot, queue)])


class LedgerSlotHistory(SlotHistory):
    """The cron slots that Redis or the ledger has recorded."""

    def __init__(self, broker: Broker, ledger: Ledger) -> None:
        super().__init__(broker)
        self._ledger = ledger

    async def last(self, series: Sequence[CronSeries], queue: str) -> dict[str, datetime]:
        last = await super().last(series, queue)
        written = await self._ledger.last_enqueued([_ids(each) for each in series])
        for each, enqueued_at in zip(series, written, strict=True):
            if enqueued_at is not None:
                moment = _EPOCH + timedelta(milliseconds=enqueued_at)
                last[each.name] = max(last.get(each.name, moment), moment)
        return last

    async def put(self, queue: str, slots: Sequence[CronSlot]) -> None:
        jobs = [_new_job(slot, queue) for slot in slots if slot.payload and not await self._is_held(slot, queue)]
        new = await self._ledger.add_new(jobs) if jobs else []
        for job in new:
            count_enqueued([job])
        # The relay publishes the jobs that do not reach Redis now.
        await super().put(queue, [slot._replace(payload=b"") for slot in slots])
        await self._broker.publish(new)

    async def _is_held(self, slot: CronSlot, queue: str) -> bool:
        """Whether a job has the id that the slots of this series share, and waits or runs, or its result is kept."""
        return bool(slot.if_free) and (await self._broker.status(queue, slot.job_id)).holds_id


def _ids(series: CronSeries) -> IdRange:
    task = series.task.name
    return IdRange.of_numbers(task, slot_id(task, "")) if series.job_id is None else IdRange.of_id(task, series.job_id)


def _new_job(slot: CronSlot, queue: str) -> NewJob:
    payload = encode(slot.task, b"{}", slot.moment, in_ledger=True)
    return NewJob(slot.job_id, payload, slot.task, queue, slot.moment, due=slot.moment)

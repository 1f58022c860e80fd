"""``CronSlots``: the last cron slot of each scheduled task in Redis, and the clock that slots are compared with."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from worker.broker.connections import Connections
from worker.broker.keys import Keys
from worker.broker.records import CronSlot
from worker.new_job import A_DAY

_NO_TIME = 15  # digits of milliseconds that are outside the range of datetime
_EPOCH = datetime.fromtimestamp(0, UTC)
_CHUNK = 1000  # names in one round trip


class CronSlots:
    """The cron slots of one Redis."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def add(self, queue: str, slots: Sequence[CronSlot]) -> list[bool]:
        """Queue the jobs of slots, oldest first.

        Returns:
            For each slot, whether it was new: no worker had queued or recorded it before.
        """
        keys = Keys.of(queue)
        arguments: list[Any] = [keys.prefix, keys.wake, "", A_DAY]
        for slot in slots:
            arguments += (slot.series, slot.moment, slot.job_id, slot.payload, slot.if_free)
        return [bool(reply) for reply in await self._connections.run("slots", queue, arguments)]

    async def last(self, queue: str) -> dict[str, datetime]:
        """The last slot of each series that was queued or recorded, by the series' name."""
        last: dict[bytes, bytes] = await self._connections.client.hgetall(Keys.of(queue).slots)  # type: ignore[misc]
        return {task.decode(errors="replace"): _moment(raw) for task, raw in last.items() if _is_time(raw)}

    async def last_of(self, queue: str, series: Sequence[str]) -> dict[str, datetime]:
        """The last slots of the series of these names that have one. One round trip for a thousand names."""
        last: dict[str, datetime] = {}
        for begin in range(0, len(series), _CHUNK):
            names = [*series[begin : begin + _CHUNK]]
            moments = await self._connections.client.hmget(Keys.of(queue).slots, names)  # type: ignore[misc]
            found = zip(names, moments, strict=True)
            last |= {name: _moment(raw) for name, raw in found if raw is not None and _is_time(raw)}
        return last

    async def now(self, queue: str) -> datetime:
        """The time on the server that holds `queue`, in UTC."""
        microseconds = await self._connections.run("clock", queue, [])
        return _EPOCH + timedelta(microseconds=microseconds)


def _is_time(raw: bytes) -> bool:
    """Whether a field holds a time. Other software may have written fields that hold none."""
    return raw.isdigit() and len(raw) < _NO_TIME


def _moment(raw: bytes) -> datetime:
    return _EPOCH + timedelta(milliseconds=int(raw))

"""``Timetable``: the next cron slot of each series, in a heap.

A look at the clock costs as much as there are slots that have passed, whatever the number of scheduled tasks.
"""

from collections.abc import Iterable
from datetime import datetime
from heapq import heappop, heappush
from itertools import count

from worker.aio.time_slices import TimeSlices
from worker.engine.cron_series import CronSeries


class Timetable:
    """The next cron slot of each series. A series that was taken has none until it is added again."""

    def __init__(self) -> None:
        self._heap: list[tuple[datetime, int, CronSeries]] = []
        self._numbers = count()  # series cannot be compared, and two may have the same time

    @property
    def first(self) -> datetime | None:
        """The earliest of the slots."""
        return self._heap[0][0] if self._heap else None

    async def add(self, slots: Iterable[tuple[CronSeries, datetime]]) -> None:
        """Add series with their next slots."""
        slices = TimeSlices()
        for series, moment in slots:
            heappush(self._heap, (moment, next(self._numbers), series))
            await slices.rest()

    async def take(self, until: datetime) -> list[tuple[CronSeries, datetime]]:
        """Take the series whose slots have passed at `until`, the earliest first."""
        slices = TimeSlices()
        taken = []
        while self._heap and self._heap[0][0] <= until:
            moment, _, series = heappop(self._heap)
            taken.append((series, moment))
            await slices.rest()
        return taken

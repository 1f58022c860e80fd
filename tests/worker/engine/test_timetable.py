"""The next cron slots of all series."""

from datetime import UTC, datetime, timedelta
from typing import Any

from worker import cron
from worker.engine.cron_series import CronSeries
from worker.engine.timetable import Timetable

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)


async def test_series_are_taken_when_their_slots_have_passed_the_earliest_first() -> None:
    """Also several with one time. A series that was taken comes back only when it is added again."""

    @cron("* * * * *")
    async def tick() -> None: ...

    given: Any = tick
    one, two, three = (next(CronSeries.of(given)) for _ in range(3))
    table = Timetable()
    assert table.first is None
    later = NOON + timedelta(minutes=1)
    await table.add([(one, later), (two, NOON), (three, NOON)])
    assert table.first == NOON
    assert await table.take(NOON - timedelta(microseconds=1)) == []
    assert await table.take(NOON) == [(two, NOON), (three, NOON)]
    assert table.first == later
    assert await table.take(later) == [(one, later)]
    assert table.first is None

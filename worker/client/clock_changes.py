"""The moments at which the clock of a time zone is set forward or back."""

from datetime import UTC, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import NamedTuple

_STEP = timedelta(hours=6)  # no zone changes its clock twice within this time
_SECOND = timedelta(seconds=1)


class ClockChange(NamedTuple):
    """A change of a zone's clock. Up to `at` (in UTC) it is `before` ahead of UTC, and from then on `after`."""

    at: datetime
    before: timedelta
    after: timedelta


def offset_at(moment: datetime, zone: tzinfo) -> timedelta:
    """The offset of the clock in `zone` from UTC at `moment`."""
    offset = moment.astimezone(zone).utcoffset()
    assert offset is not None  # noqa: S101 - a zone of `worker.client.zones` always has an offset
    return offset


def first_change(zone: tzinfo, start: datetime, end: datetime) -> ClockChange | None:
    """The first change of the clock after `start`, up to and including `end`. Both are in UTC."""
    changes = (change for year in range(start.year, end.year + 1) for change in _changes_in(year, zone))
    return next((change for change in changes if start < change.at <= end), None)


@lru_cache(maxsize=512)  # finding them takes a millisecond, and a schedule needs few years
def _changes_in(year: int, zone: tzinfo) -> tuple[ClockChange, ...]:
    """The changes after the first moment of a year, up to and including the first moment of the next year."""
    changes = []
    moment, end = datetime(year, 1, 1, tzinfo=UTC), datetime(year + 1, 1, 1, tzinfo=UTC)
    before = offset_at(moment, zone)
    while moment < end:
        earlier, moment = moment, min(moment + _STEP, end)
        after = offset_at(moment, zone)
        if after != before:
            changes.append(ClockChange(_bisect(earlier, moment, before, zone), before, after))
            before = after
    return tuple(changes)


def _bisect(earlier: datetime, later: datetime, before: timedelta, zone: tzinfo) -> datetime:
    """The first second from `earlier` to `later` at which the clock is not `before` ahead of UTC any more."""
    while later - earlier > _SECOND:
        middle = earlier + (later - earlier) // 2
        middle = middle.replace(microsecond=0)
        earlier, later = (middle, later) if offset_at(middle, zone) == before else (earlier, middle)
    return later

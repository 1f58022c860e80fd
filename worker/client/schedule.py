"""``Schedule``: a crontab, or arq's cron keywords, in a time zone, from which the next slot in UTC follows.

1. Both spellings become one crontab of six fields. cronsim matches it with the wall clock.
2. A matching time that the clock shows once is a slot, in every zone and on every day.
3. Hours of the schedule that are next to each other keep their rhythm when the clock is set: both of the times that the
   clock shows twice are slots, and a skipped time is none. So an hourly schedule has one slot for each hour of UTC.
4. A time in an hour that stands alone, as in "30 2 * * *", has exactly one slot: the first of two, or for a skipped
   time the moment at which the clock is set.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Literal, get_args
from zoneinfo import ZoneInfoNotFoundError, available_timezones

from cronsim import CronSim, CronSimError
from cronsim.explain import Expression

from worker.client.clock_changes import ClockChange, first_change, offset_at
from worker.client.zones import zone
from worker.errors import TaskDefinitionError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from datetime import tzinfo
    from typing import Self

__all__ = ["Misfire", "Schedule"]

Misfire = Literal["skip", "once", "all"]
"""The treatment of slots that passed while no worker ran: none, one or all of them are run."""

_ANY_TIME = datetime(2000, 1, 1)  # noqa: DTZ001 - a wall clock time without a zone

_FIRST_REACH = timedelta(minutes=1)
_SECOND = timedelta(seconds=1)

_EXAMPLE = 'Example: "*/5 * * * *" (every five minutes) or "30 2 * * MON-FRI"'
_KEYWORDS_EXAMPLE = "Example: hour={9, 17}, minute=30"

# In the order of a crontab of six fields, by the names that cronsim's errors use.
_CRONTAB_FIELDS = {
    "second": "0-59",
    "minute": "0-59",
    "hour": "0-23",
    "day-of-month": "1-31 and in one of its months, L (the last) or LW (the last weekday)",
    "month": "1-12 or JAN-DEC",
    "day-of-week": "0-7 (Sunday is 0 and 7) or SUN-SAT, also FRI#2 (the second) or 5L (the last)",
}
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")


@dataclass(frozen=True)
class Schedule:
    """The times at which a scheduled task runs. Create it by `parse` or `from_keywords`. Equal schedules compare equal.

    Raises:
        TaskDefinitionError: the expression is not a schedule, or none of its dates exists.
    """

    expression: str
    """A crontab of five fields, or of six with seconds in front."""
    timezone: str = "UTC"
    """The IANA name of the zone whose wall clock the crontab refers to, or its offset, as in "UTC+09:00"."""
    misfire: Misfire = "skip"
    """The treatment of slots that passed while no worker ran."""
    both_days: bool = False
    """Whether day of month and weekday must both match, as in arq. In a crontab either is enough if both are given."""
    microsecond: int = 0
    """The microsecond of each slot."""
    run_at_startup: bool = False
    """Whether a worker also queues a job when it starts."""
    job_id: str | None = None
    """The id of each slot's job. While a job of this id waits or runs, or its result is kept, a slot adds none."""
    unique: bool = True
    """Whether the first worker that reaches a slot queues its job. Otherwise each worker queues one. With `job_id` this
    has no effect."""

    @classmethod
    def parse(cls, expression: str, *, timezone: str = "UTC", misfire: Misfire = "skip") -> Self:
        """A schedule from a crontab: minute, hour, day of month, month, weekday; seconds may come first."""
        return cls(expression, timezone, misfire)

    @classmethod
    def from_keywords(
        cls,
        *,
        month: int | Collection[int] | None = None,
        day: int | Collection[int] | None = None,
        weekday: int | str | Collection[int | str] | None = None,
        hour: int | Collection[int] | None = None,
        minute: int | Collection[int] | None = None,
        second: int | Collection[int] | None = 0,
        microsecond: int = 123_456,
        timezone: str = "UTC",
        misfire: Misfire = "skip",
    ) -> Self:
        """A schedule from the keywords of arq's `cron()`, with their meaning there.

        Each is a number, a set of them, or None for any; all given ones must match. `weekday` counts from 0
        for Monday and takes names ("mon"). `microsecond` is that of each slot.
        """
        if not 0 <= microsecond <= 999_999:
            raise TaskDefinitionError(f"microsecond={microsecond!r} is not a number from 0 to 999999")
        fields = (
            _crontab_field("second", second, range(60)),
            _crontab_field("minute", minute, range(60)),
            _crontab_field("hour", hour, range(24)),
            _crontab_field("day", day, range(1, 32)),
            _crontab_field("month", month, range(1, 13)),
            _crontab_weekdays(weekday),
        )
        return cls(" ".join(fields), timezone, misfire, both_days=True, microsecond=microsecond)

    def __post_init__(self) -> None:
        if self.misfire not in get_args(Misfire):
            raise TaskDefinitionError(f"misfire={self.misfire!r} is not one of 'skip', 'once' and 'all'")
        _ = self._zone  # raises if there is no such zone
        if next(self._matches(_ANY_TIME), None) is None:
            raise TaskDefinitionError(f"the schedule {self.expression!r} names a date that does not exist")

    def next_after(self, moment: datetime) -> datetime:
        """The first slot after `moment`, in UTC.

        Raises:
            ValueError: `moment` has no time zone.
        """
        if moment.tzinfo is None:
            raise ValueError(f"{moment!r} has no time zone: use datetime.now(UTC)")
        return self._next_after(moment.astimezone(UTC) - self._within_second) + self._within_second

    def slots_between(self, start: datetime, end: datetime, limit: int = 1000) -> tuple[datetime, ...]:
        """The slots after `start` up to and including `end`, in UTC. Only the latest `limit` of them."""
        reach = _FIRST_REACH
        while True:
            begin = max(start, end - reach)
            slots = list(self._slots_between(begin, end))
            if begin == start or len(slots) >= limit:
                return tuple(slots[max(len(slots) - limit, 0) :])
            reach *= 2  # search from the end, as there may be millions of earlier slots

    def describe(self) -> str:
        """A description to show, as "At 02:30 every day (Europe/Berlin)"."""
        explained = Expression(self._matches(_ANY_TIME).parts)
        explained.day_and |= self.both_days
        return f"{explained.explain()} ({self.timezone})"

    def _slots_between(self, start: datetime, end: datetime) -> Iterator[datetime]:
        slot = self.next_after(start)
        while slot <= end:
            yield slot
            slot = self.next_after(slot)

    def _next_after(self, past: datetime) -> datetime:
        begin, offset = past, offset_at(past, self._zone)
        wall = begin + offset
        while True:
            slot = next(self._slots_shown_after(wall, offset))
            change = first_change(self._zone, begin, slot)
            if change is None:
                return slot
            if self._skips_a_lone_time(change):
                return change.at
            begin, offset = change.at, change.after
            wall = begin + offset - _SECOND  # the moment of the change may itself be a slot

    def _slots_shown_after(self, wall: datetime, offset: timedelta) -> Iterator[datetime]:
        """The slots after the clock shows `wall`, as if it stayed `offset` ahead of UTC."""
        for match in self._matches(wall.replace(tzinfo=None)):
            slot = (match - offset).replace(tzinfo=UTC)
            is_shown_again = slot.astimezone(self._zone).fold == 1
            if not is_shown_again or match.hour in self._neighbouring_hours:
                yield slot

    def _skips_a_lone_time(self, change: ClockChange) -> bool:
        """Whether the clock skips a time in an hour that stands alone."""
        skipped_from, skipped_to = change.at + change.before, change.at + change.after
        matches = self._matches((skipped_from - _SECOND).replace(tzinfo=None))
        skipped = takewhile(lambda match: match < skipped_to.replace(tzinfo=None), matches)
        return any(match.hour not in self._neighbouring_hours for match in skipped)

    def _matches(self, after: datetime) -> CronSim:
        """cronsim's iterator over the matching wall clock times after `after`. It is infinite or empty."""
        fields = self.expression.split()
        seconds = ["0"] if len(fields) == 5 else []
        try:
            matches = CronSim(" ".join(seconds + fields), after)
        except CronSimError as error:
            raise _wrong_crontab(self.expression, seconds + fields, error) from None
        matches.day_and |= self.both_days
        return matches

    @cached_property
    def _zone(self) -> tzinfo:
        try:
            return zone(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, TypeError, OSError):
            raise _wrong_timezone(self.timezone) from None

    @cached_property
    def _neighbouring_hours(self) -> frozenset[int]:
        """The hours of the schedule that are next to another hour of it."""
        hours = self._matches(_ANY_TIME).hours
        return frozenset(hour for hour in hours if {(hour - 1) % 24, (hour + 1) % 24} & hours)

    @property
    def _within_second(self) -> timedelta:
        return timedelta(microseconds=self.microsecond)


def _crontab_field(name: str, value: int | Collection[int] | None, allowed: range) -> str:
    if value is None:
        return "*"
    numbers = {value} if isinstance(value, int) else value
    if not numbers or not all(number in allowed for number in numbers):
        raise _wrong_keyword(name, value, allowed)
    return ",".join(str(number) for number in sorted(numbers))


def _crontab_weekdays(value: int | str | Collection[int | str] | None) -> str:
    if value is None:
        return "*"
    days = {value} if isinstance(value, int | str) else value
    numbers = {_weekday_number(day) if isinstance(day, str) else day for day in days}
    if not numbers or not all(number in range(7) for number in numbers):
        raise _wrong_keyword("weekday", value, range(7))
    return ",".join(str(number + 1) for number in sorted(numbers))  # a crontab's Monday is 1


def _weekday_number(name: str) -> int:
    matching = [number for number, day in enumerate(_WEEKDAYS) if len(name) >= 3 and day.startswith(name.lower())]
    if not matching:
        raise TaskDefinitionError(f"weekday={name!r} is not one of mon, tue, wed, thu, fri, sat, sun")
    return matching[0]


def _wrong_keyword(name: str, value: object, allowed: range) -> TaskDefinitionError:
    expected = f"a number from {allowed[0]} to {allowed[-1]} or a set of them"
    return TaskDefinitionError(f"{name}={value!r} is not {expected}. {_KEYWORDS_EXAMPLE}")


def _wrong_crontab(expression: str, fields: list[str], error: CronSimError) -> TaskDefinitionError:
    if len(fields) != len(_CRONTAB_FIELDS):
        found = "it needs five fields (minute, hour, day of month, month, weekday), or six with seconds in front"
    else:
        name = str(error).removeprefix("Bad ")
        text = dict(zip(_CRONTAB_FIELDS, fields, strict=True)).get(name)
        found = f"its {name} is {text!r}, and must be within {_CRONTAB_FIELDS.get(name)}"
    return TaskDefinitionError(f"{expression!r} is not a schedule: {found}. {_EXAMPLE}")


def _wrong_timezone(name: str) -> TaskDefinitionError:
    zones = available_timezones()
    if not zones:
        return TaskDefinitionError("this system has no time zones: pip install tzdata")
    near = difflib.get_close_matches(str(name), zones, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "Example: 'Europe/Berlin'"
    return TaskDefinitionError(f"timezone={name!r} is not a time zone. {hint}")

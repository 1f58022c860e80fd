from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from arq.cron import next_cron
from hypothesis import example, given, settings
from hypothesis import strategies as st

from worker.client.clock_changes import first_change
from worker.client.schedule import Schedule
from worker.errors import TaskDefinitionError

BERLIN = ZoneInfo("Europe/Berlin")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")
HOUR = timedelta(hours=1)

SPRING_FORWARD = datetime(2026, 3, 29, tzinfo=BERLIN)  # 02:00 CET becomes 03:00 CEST, at 01:00 UTC
FALL_BACK = datetime(2026, 10, 25, tzinfo=BERLIN)  # 03:00 CEST becomes 02:00 CET, at 01:00 UTC
BOTH_DAYS = pytest.mark.parametrize("day", [SPRING_FORWARD, FALL_BACK], ids=["spring", "autumn"])

moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC))  # noqa: DTZ001 - zoned by `timezones`


def slots_on(day: datetime, schedule: Schedule) -> tuple[datetime, ...]:
    """The slots from the first to the last moment of a day on Berlin's wall clock."""
    instant = timedelta(microseconds=1)
    tomorrow = (day + timedelta(days=1)).astimezone(UTC)
    return schedule.slots_between(day.astimezone(UTC) - instant, tomorrow - instant)


class TestCrontab:
    def test_the_next_slot_is_the_first_matching_minute_after_the_moment(self) -> None:
        """A crontab's next slot is the first matching minute after the moment, and never the moment itself."""
        schedule = Schedule.parse("*/5 * * * *")
        noon = datetime(2026, 5, 1, 12, tzinfo=UTC)
        assert schedule.next_after(noon - timedelta(microseconds=1)) == noon
        assert schedule.next_after(noon) == noon + timedelta(minutes=5)

    def test_a_sixth_field_in_front_counts_seconds(self) -> None:
        """A sixth field in front counts seconds."""
        schedule = Schedule.parse("*/10 * * * * *")
        assert schedule.next_after(datetime(2026, 5, 1, 12, 0, 1, tzinfo=UTC)).second == 10

    def test_hours_are_those_of_the_zone_and_slots_are_in_utc(self) -> None:
        """Hours are those of the zone's wall clock; the slot is in UTC."""
        schedule = Schedule.parse("0 9 * * *", timezone="Europe/Berlin")
        assert schedule.next_after(datetime(2026, 7, 1, tzinfo=UTC)) == datetime(2026, 7, 1, 7, tzinfo=UTC)
        assert schedule.next_after(datetime(2026, 7, 1, tzinfo=UTC)).tzinfo is UTC

    def test_a_moment_without_a_time_zone_is_refused(self) -> None:
        """A moment without a time zone is refused, as it could mean any."""
        with pytest.raises(ValueError, match=r"datetime\.now\(UTC\)"):
            Schedule.parse("* * * * *").next_after(datetime(2026, 1, 1))  # noqa: DTZ001 - the mistake under test

    @pytest.mark.parametrize(
        ("expression", "complaint"),
        [
            ("", "five fields"),
            ("* * *", "five fields"),
            ("61 * * * *", "minute is '61'"),
            ("* 24 * * *", "hour is '24'"),
            ("* * * * MOO", "day-of-week is 'MOO'"),
            ("* * * * * MOO", "day-of-week is 'MOO'"),
            ("0 0 30 2 *", "day-of-month is '30'"),
        ],
    )
    def test_an_invalid_crontab_is_refused_with_the_field_and_an_example(self, expression: str, complaint: str) -> None:
        """A wrong crontab is refused where it is declared: the field, what it takes, an example."""
        with pytest.raises(TaskDefinitionError) as caught:
            Schedule.parse(expression)
        message = str(caught.value)
        assert repr(expression) in message
        assert complaint in message
        assert '"*/5 * * * *"' in message

    def test_a_misspelled_time_zone_is_refused_with_the_nearest_name(self) -> None:
        """A misspelled zone is refused, with the nearest name."""
        with pytest.raises(TaskDefinitionError, match=r"'Europe/Berln'.*'Europe/Berlin'"):
            Schedule.parse("* * * * *", timezone="Europe/Berln")

    @pytest.mark.parametrize("zone", ["", "../etc/passwd", "/etc/localtime", "Europe"])
    def test_a_text_that_is_no_time_zone_is_refused(self, zone: str) -> None:
        """A text that is not the name of a time zone is refused, whatever zoneinfo makes of it."""
        with pytest.raises(TaskDefinitionError, match="is not a time zone"):
            Schedule.parse("* * * * *", timezone=zone)

    def test_an_unknown_misfire_policy_is_refused_with_the_known_ones(self) -> None:
        """A misfire policy that does not exist is refused with those that do."""
        wrong: Any = "never"
        with pytest.raises(TaskDefinitionError, match="'never' is not one of 'skip', 'once' and 'all'"):
            Schedule.parse("* * * * *", misfire=wrong)

    def test_schedules_are_equal_hashable_and_can_be_pickled(self) -> None:
        """Schedules are values: equal, hashable, and can be sent to another process."""
        schedule = Schedule.parse("30 2 * * *", timezone="Europe/Berlin", misfire="all")
        assert schedule == Schedule.parse("30 2 * * *", timezone="Europe/Berlin", misfire="all")
        assert pickle.loads(pickle.dumps(schedule)) == schedule
        assert len({schedule, pickle.loads(pickle.dumps(schedule))}) == 1

    def test_a_schedule_is_described_as_a_sentence_with_its_zone(self) -> None:
        """A schedule reads as a sentence that names its zone."""
        assert Schedule.parse("30 2 * * *", timezone="Europe/Berlin").describe() == "At 02:30 every day (Europe/Berlin)"


class TestDaylightSaving:
    @BOTH_DAYS
    @pytest.mark.parametrize("expression", ["0 * * * *", "0 0-23 * * *", "0 0 * * * *"])
    def test_an_hourly_schedule_has_one_slot_in_each_hour_of_utc(self, day: datetime, expression: str) -> None:
        """An hourly schedule has one slot in each hour of UTC, however it is spelled."""
        slots = slots_on(day, Schedule.parse(expression, timezone="Europe/Berlin"))
        assert len(slots) == (23 if day is SPRING_FORWARD else 25)
        assert all(later - earlier == HOUR for earlier, later in pairwise(slots))

    @BOTH_DAYS
    def test_a_schedule_of_five_minutes_keeps_its_rhythm_through_a_clock_change(self, day: datetime) -> None:
        """A schedule that runs within every hour keeps its rhythm through the clock change."""
        slots = slots_on(day, Schedule.parse("*/5 * * * *", timezone="Europe/Berlin"))
        assert all(later - earlier == timedelta(minutes=5) for earlier, later in pairwise(slots))
        assert len(slots) == 12 * (23 if day is SPRING_FORWARD else 25)

    @pytest.mark.parametrize("expression", ["30 2 * * *", "0 30 2 * * *"])
    def test_a_daily_slot_in_the_skipped_hour_runs_once_when_the_hour_is_over(self, expression: str) -> None:
        """A daily 02:30 runs once on the day that has no 02:30: when the clock lands on 03:00."""
        slots = slots_on(SPRING_FORWARD, Schedule.parse(expression, timezone="Europe/Berlin"))
        assert slots == (datetime(2026, 3, 29, 1, 0, tzinfo=UTC),)

    @pytest.mark.parametrize("expression", ["30 2 * * *", "0 30 2 * * *"])
    def test_a_daily_slot_in_the_repeated_hour_runs_once_at_the_first(self, expression: str) -> None:
        """A daily 02:30 runs once on the day that has two of them: at the first."""
        slots = slots_on(FALL_BACK, Schedule.parse(expression, timezone="Europe/Berlin"))
        assert slots == (datetime(2026, 10, 25, 0, 30, tzinfo=UTC),)

    @BOTH_DAYS
    def test_a_daily_schedule_by_keywords_has_one_slot_on_the_day_of_a_clock_change(self, day: datetime) -> None:
        """arq's keywords in a zone follow the same rules."""
        schedule = Schedule.from_keywords(hour=2, minute=30, timezone="Europe/Berlin")
        assert len(slots_on(day, schedule)) == 1

    def test_a_daily_slot_at_a_skipped_midnight_runs_when_the_hour_is_over(self) -> None:
        """If the clock skips midnight, a daily job runs at the first moment of the day."""
        schedule = Schedule.parse("0 0 * * *", timezone="Asia/Beirut")
        before = datetime(2026, 3, 28, 12, tzinfo=UTC)
        assert schedule.next_after(before) == datetime(2026, 3, 28, 22, tzinfo=UTC)
        assert schedule.next_after(before).astimezone(ZoneInfo("Asia/Beirut")).hour == 1

    @pytest.mark.parametrize("minute", [0, 15, 30, 45])
    @pytest.mark.parametrize("start", [datetime(2025, 10, 4, 12, tzinfo=UTC), datetime(2025, 4, 5, 12, tzinfo=UTC)])
    def test_an_hourly_schedule_follows_a_clock_change_of_half_an_hour(self, start: datetime, minute: int) -> None:
        """Where the clock is set by half an hour, an hourly schedule runs whenever the clock shows its minute."""
        slots = Schedule.parse(f"{minute} * * * *", timezone="Australia/Lord_Howe").slots_between(
            start, start + 6 * HOUR
        )
        passed = [start + timedelta(minutes=number) for number in range(1, 361)]
        assert list(slots) == [moment for moment in passed if moment.astimezone(LORD_HOWE).minute == minute]

    def test_a_schedule_of_several_hours_goes_on_through_the_repeated_hour(self) -> None:
        """A schedule of several hours in a row goes on in the hour that the clock shows twice, without a gap."""
        for expression, pause in (("*/15 * 0-22 * * *", timedelta(seconds=15)), ("0 0-22 * * *", HOUR)):
            slots = Schedule.parse(expression, timezone="Europe/Berlin").slots_between(
                FALL_BACK.astimezone(UTC), (FALL_BACK + 4 * HOUR).astimezone(UTC), limit=10_000
            )
            assert {later - earlier for earlier, later in pairwise(slots)} == {pause}

    def test_a_schedule_of_several_hours_does_not_make_up_for_the_skipped_hour(self) -> None:
        """A schedule of several hours in a row does not run for the hour that the clock skips: the next one is near."""
        slots = slots_on(SPRING_FORWARD, Schedule.parse("5 0-22 * * *", timezone="Europe/Berlin"))
        assert [slot.astimezone(BERLIN).hour for slot in slots] == [0, 1, *range(3, 23)]
        assert all(slot.minute == 5 for slot in slots)


def is_slot(moment: datetime, minutes: set[int], hours: set[int], zone: ZoneInfo = BERLIN) -> bool:
    """Return whether a moment is a slot by the module's rules: slow, and too simple to be wrong."""

    def is_in_a_row(hour: int) -> bool:
        return (hour - 1) % 24 in hours or (hour + 1) % 24 in hours

    wall = moment.astimezone(zone)
    if wall.minute in minutes and wall.hour in hours and (wall.fold == 0 or is_in_a_row(wall.hour)):
        return True
    skipped = (moment - timedelta(minutes=1)).astimezone(zone).replace(tzinfo=None) + timedelta(minutes=1)
    while skipped < wall.replace(tzinfo=None):
        if skipped.minute in minutes and skipped.hour in hours and not is_in_a_row(skipped.hour):
            return True
        skipped += timedelta(minutes=1)
    return False


def next_slot(moment: datetime, minutes: set[int], hours: set[int], zone: ZoneInfo = BERLIN) -> datetime:
    """Return the first minute after a moment for which `is_slot` is true."""
    minute = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
    while not is_slot(minute, minutes, hours, zone):
        minute += timedelta(minutes=1)
    return minute


some_minutes = st.sets(st.integers(0, 59), min_size=1, max_size=4)
some_hours = st.one_of(
    st.just(set(range(24))),
    st.just(set(range(23))),
    st.sets(st.integers(0, 23), min_size=1, max_size=4),
    st.sets(st.integers(0, 4), min_size=1),
)


@st.composite
def zones_near_changes(draw: st.DrawFn) -> tuple[ZoneInfo, datetime]:
    """Any zone there is, and a moment near a change of its clock, if it has any."""
    zone = ZoneInfo(draw(st.sampled_from(sorted(available_timezones()))))
    start = draw(st.datetimes(datetime(1975, 1, 1), datetime(2036, 1, 1), timezones=st.just(UTC)))  # noqa: DTZ001 - zoned
    change = first_change(zone, start, start + timedelta(days=400))
    near = start if change is None else change.at
    return zone, near + draw(st.timedeltas(timedelta(hours=-26), timedelta(hours=26)))


class TestNextAfter:
    @settings(deadline=None)  # a slow machine is no failure
    @given(
        minutes=some_minutes,
        hours=some_hours,
        moment=st.one_of(
            moments,
            st.timedeltas(timedelta(hours=-4), timedelta(hours=4)).map(SPRING_FORWARD.astimezone(UTC).__add__),
            st.timedeltas(timedelta(hours=-4), timedelta(hours=4)).map(FALL_BACK.astimezone(UTC).__add__),
        ),
    )
    @example(minutes={30}, hours={2}, moment=datetime(2026, 3, 29, 0, 59, tzinfo=UTC))
    @example(minutes={30}, hours={2}, moment=datetime(2026, 10, 25, 0, 30, tzinfo=UTC))
    @example(minutes={30}, hours={2, 3}, moment=datetime(2026, 10, 25, 0, 30, tzinfo=UTC))
    def test_there_is_no_slot_between_a_moment_and_its_next_slot(
        self, minutes: set[int], hours: set[int], moment: datetime
    ) -> None:
        """Minute by minute there is no slot between a moment and its next slot, also around both clock changes."""
        expression = f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * *"
        slot = Schedule.parse(expression, timezone="Europe/Berlin").next_after(moment)
        assert slot == next_slot(moment, minutes, hours)

    @settings(deadline=None)  # a slow machine is no failure
    @given(minutes=some_minutes, hours=some_hours, where=zones_near_changes())
    @example(minutes={30}, hours=set(range(24)), where=(LORD_HOWE, datetime(2025, 10, 4, 15, tzinfo=UTC)))
    @example(minutes={45}, hours={1}, where=(LORD_HOWE, datetime(2025, 4, 5, 14, 30, tzinfo=UTC)))
    @example(minutes={0}, hours={12}, where=(ZoneInfo("Pacific/Apia"), datetime(2011, 12, 29, 23, tzinfo=UTC)))
    def test_there_is_no_slot_between_a_moment_and_its_next_slot_in_any_time_zone(
        self, minutes: set[int], hours: set[int], where: tuple[ZoneInfo, datetime]
    ) -> None:
        """In any zone, each matching time that the clock shows once is a slot, by however much the clock changes."""
        zone, moment = where
        expression = f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * *"
        assert Schedule.parse(expression, timezone=zone.key).next_after(moment) == next_slot(
            moment, minutes, hours, zone
        )

    @settings(deadline=None)  # a slow machine is no failure
    @given(
        expression=st.sampled_from(
            ["* * * * *", "*/7 * * * *", "15 3 * * SUN", "0 0 L * *", "0 12 13 * FRI", "5 0 * * MON#1", "*/9 0 1 * * *"]
        ),
        zone=st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Beirut"]),
        moment=moments,
    )
    def test_each_slot_lies_after_the_one_before_it(self, expression: str, zone: str, moment: datetime) -> None:
        """Each slot lies after the one before it, in any zone."""
        schedule = Schedule.parse(expression, timezone=zone)
        for _ in range(5):
            slot = schedule.next_after(moment)
            assert slot > moment
            moment = slot


options = st.fixed_dictionaries(
    {},
    optional={
        "month": st.sets(st.integers(1, 12), min_size=1),
        "day": st.sets(st.integers(1, 28), min_size=1),
        "weekday": st.one_of(
            st.sets(st.integers(0, 6), min_size=1),
            st.sampled_from(["mon", "tues", "wed", "thurs", "fri", "sat", "sun"]),
        ),
        "hour": st.one_of(st.integers(0, 23), st.sets(st.integers(0, 23), min_size=1)),
        "minute": st.one_of(st.integers(0, 59), st.sets(st.integers(0, 59), min_size=1)),
        "second": st.one_of(st.none(), st.integers(0, 59), st.sets(st.integers(0, 59), min_size=1)),
    },
)


class TestKeywords:
    @settings(deadline=None)  # a slow machine is no failure
    @given(options=options, moment=moments)
    @example(options={"day": {13}, "weekday": "fri"}, moment=datetime(2026, 1, 1, tzinfo=UTC))
    def test_the_slots_in_utc_are_those_of_arq_to_the_microsecond(
        self, options: dict[str, Any], moment: datetime
    ) -> None:
        """In UTC the next slot and those after it are those of arq, to the microsecond."""
        # From within a second arq goes on to the next one, so both start where a slot could lie.
        moment = moment.replace(microsecond=123_456)
        schedule = Schedule.from_keywords(**options)
        for _ in range(3):
            slot = schedule.next_after(moment)
            assert slot == next_cron(moment, **options)
            moment = slot

    def test_a_slot_later_in_the_same_second_is_still_ahead(self) -> None:
        """A slot that lies later in the second of the moment counts as ahead."""
        schedule = Schedule.from_keywords(minute=0)
        noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
        assert schedule.next_after(noon) == noon.replace(microsecond=123_456)

    def test_weekdays_can_be_given_by_their_first_three_letters_or_more(self) -> None:
        """A weekday is known by its first three letters, alone or in a set."""
        assert Schedule.from_keywords(weekday="Tuesday") == Schedule.from_keywords(weekday="tues")
        assert Schedule.from_keywords(weekday={"tue", "sun"}) == Schedule.from_keywords(weekday={1, 6})

    @pytest.mark.parametrize(
        "keywords",
        [
            {"hour": 24},
            {"hour": set()},
            {"minute": "5"},
            {"day": 0},
            {"weekday": 7},
            {"weekday": "day"},
            {"second": -1},
        ],
    )
    def test_a_keyword_out_of_range_is_refused_by_its_name(self, keywords: dict[str, Any]) -> None:
        """A keyword that can match nothing (arq searches for ever) is refused by its name."""
        with pytest.raises(TaskDefinitionError, match=f"^{next(iter(keywords))}="):
            Schedule.from_keywords(**keywords)

    @pytest.mark.parametrize("keywords", [{"month": 2, "day": 31}, {"month": 2, "day": 30, "weekday": "mon"}])
    def test_a_date_that_no_year_has_is_refused(self, keywords: dict[str, Any]) -> None:
        """A date that no year has is refused."""
        with pytest.raises(TaskDefinitionError, match=r"day-of-month|does not exist"):
            Schedule.from_keywords(**keywords)

    def test_the_description_of_two_days_says_that_both_must_match(self) -> None:
        """The description says that both days must match."""
        described = Schedule.from_keywords(day=13, weekday="fri", hour=2, minute=30).describe()
        assert described == "At 02:30 on the 13th day of month if it's on Friday (UTC)"


class TestSlotsBetween:
    def test_the_start_of_a_window_is_excluded_and_its_end_included(self) -> None:
        """The start is excluded and the end included, so that consecutive windows share no slot and miss none."""
        schedule = Schedule.parse("0 * * * *")
        noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
        assert schedule.slots_between(noon, noon + 3 * HOUR) == (noon + HOUR, noon + 2 * HOUR, noon + 3 * HOUR)
        assert schedule.slots_between(noon, noon + HOUR / 2) == ()

    def test_at_most_limit_slots_are_listed_and_they_are_the_latest(self) -> None:
        """However long nothing ran, at most `limit` slots are listed, the latest."""
        noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
        slots = Schedule.parse("* * * * *").slots_between(noon, noon + timedelta(days=900))
        assert len(slots) == 1000
        assert slots[-1] == noon + timedelta(days=900)
        assert slots[-1] - slots[0] == timedelta(minutes=999)
        assert Schedule.parse("* * * * *").slots_between(noon, noon + HOUR, limit=0) == ()

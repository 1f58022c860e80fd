"""Clock changes (daylight saving time and others) in every time zone."""

import random
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

from worker.client.clock_changes import ClockChange, first_change, offset_at

HOUR = timedelta(hours=1)
SOME_ZONES = random.Random(8).sample(sorted(available_timezones()), 15)


def test_the_clock_changes_of_berlin_in_spring_and_autumn_are_found() -> None:
    """Berlin's clock is set twice a year, at one in the morning of UTC."""
    zone, year = ZoneInfo("Europe/Berlin"), datetime(2026, 1, 1, tzinfo=UTC)
    spring = first_change(zone, year, year + timedelta(days=365))
    assert spring == ClockChange(datetime(2026, 3, 29, 1, tzinfo=UTC), HOUR, 2 * HOUR)
    autumn = first_change(zone, spring.at, year + timedelta(days=365))
    assert autumn == ClockChange(datetime(2026, 10, 25, 1, tzinfo=UTC), 2 * HOUR, HOUR)
    assert first_change(zone, autumn.at, year + timedelta(days=365)) is None


def test_the_start_of_the_period_is_excluded_and_its_end_included() -> None:
    """The start is excluded and the end included, also where the clock changes at the turn of the year."""
    zone, at = ZoneInfo("Asia/Pyongyang"), datetime(2015, 8, 14, 15, tzinfo=UTC)
    assert first_change(zone, at - timedelta(seconds=1), at) == ClockChange(at, 9 * HOUR, 8.5 * HOUR)
    assert first_change(zone, at, at + HOUR) is None
    assert first_change(zone, at - HOUR, at - timedelta(seconds=1)) is None
    zone, at = ZoneInfo("Asia/Singapore"), datetime(1981, 12, 31, 16, tzinfo=UTC)
    assert first_change(zone, at - HOUR, at + timedelta(days=900)) == ClockChange(at, 7.5 * HOUR, 8 * HOUR)


def test_utc_has_no_clock_change() -> None:
    """The clock of UTC never changes."""
    assert first_change(ZoneInfo("UTC"), datetime(2000, 1, 1, tzinfo=UTC), datetime(2040, 1, 1, tzinfo=UTC)) is None


def test_no_clock_change_is_missed_in_a_sample_of_zones() -> None:
    """Hour by hour, every clock change of a zone is found (a sample of the zones)."""
    for zone in map(ZoneInfo, SOME_ZONES):
        moment = datetime(random.Random(zone.key).randint(1975, 2034), 1, 1, tzinfo=UTC)
        for _ in range(365 * 24):
            later = moment + HOUR
            change = first_change(zone, moment, later)
            assert (change is None) == (offset_at(moment, zone) == offset_at(later, zone)), (zone, moment)
            moment = later

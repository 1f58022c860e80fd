"""Time zones by name, and the name of this system's zone."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from worker.client import zones
from worker.client.schedule import Schedule
from worker.client.zones import local_name, name_of, zone
from worker.errors import TaskDefinitionError

Use = Callable[[str], None]

MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def use_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """Set the system's zone for this process, for the length of a test."""
    with monkeypatch.context() as patch:

        def use(name: str) -> None:
            patch.setenv("TZ", name)
            time.tzset()

        yield use
    time.tzset()


@pytest.mark.parametrize(
    ("name", "ahead"),
    [("UTC+09:00", 9 * 60), ("UTC-03:30", -210), ("Asia/Tokyo", 9 * 60), ("UTC", 0), ("UTC+00:00:30", 0.5)],
)
def test_a_zone_is_found_by_its_name_or_its_offset(name: str, ahead: float) -> None:
    assert MOMENT.astimezone(zone(name)).utcoffset() == timedelta(minutes=ahead)


@pytest.mark.parametrize("name", ["UTC+99:00", "UTC+9", "Mars/Olympus", ""])
def test_what_is_no_zone_is_refused(name: str) -> None:
    with pytest.raises(TaskDefinitionError, match="is not a time zone"):
        Schedule.parse("* * * * *", timezone=name)


class Nameless(tzinfo):
    """A zone whose offset depends on the moment, as those of dateutil are."""

    def utcoffset(self, moment: datetime | None) -> timedelta | None:
        return None if moment is None else timedelta(hours=1)

    def dst(self, moment: datetime | None) -> None: ...

    def tzname(self, moment: datetime | None) -> None: ...


class Pytz(Nameless):
    """A zone as those of pytz are."""

    zone = "Europe/Berlin"


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Europe/Berlin", "Europe/Berlin"),
        (ZoneInfo("Europe/Berlin"), "Europe/Berlin"),
        (Pytz(), "Europe/Berlin"),
        (UTC, "UTC"),
        (timezone(timedelta(hours=-3, minutes=-30)), "UTC-03:30"),
        (timezone(timedelta(hours=9, seconds=5)), "UTC+09:00:05"),
    ],
)
def test_a_zone_object_has_a_name_that_finds_it(given: tzinfo | str, name: str) -> None:
    assert name_of(given) == name
    zone(name)


def test_a_zone_object_without_a_name_is_refused_with_what_to_write() -> None:
    with pytest.raises(TaskDefinitionError, match=r"has no name: write zoneinfo.ZoneInfo\('Europe/Berlin'\)"):
        name_of(Nameless())


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("Europe/Berlin", "Europe/Berlin"),
        (":Asia/Tokyo", "Asia/Tokyo"),
        ("/usr/share/zoneinfo/America/New_York", "America/New_York"),
        ("UTC", "UTC"),
        ("", "UTC"),
        ("Nowhere/AtAll", "UTC"),  # as the C library has it
        ("JST-9", "UTC+09:00"),
    ],
)
def test_the_systems_zone_is_that_of_tz(use_zone: Use, variable: str, name: str) -> None:
    use_zone(variable)
    assert local_name() == name


def test_a_zone_of_rules_alone_is_taken_at_its_offset_of_now_with_a_warning(
    use_zone: Use, caplog: pytest.LogCaptureFixture
) -> None:
    """arq does so in every zone."""
    use_zone("CET-1CEST,M3.5.0,M10.5.0/3")
    assert local_name() in ("UTC+01:00", "UTC+02:00")
    assert "set TZ, for example TZ=Europe/Berlin" in caplog.text


def test_without_tz_the_systems_zone_is_that_of_its_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, use_zone: Use
) -> None:
    """The link or the file with the name. A name counts only if its zone has the clock of this system."""
    use_zone("Asia/Tokyo")
    monkeypatch.delenv("TZ")
    link, file = tmp_path / "localtime", tmp_path / "timezone"
    monkeypatch.setattr(zones, "_LINK", link)
    monkeypatch.setattr(zones, "_NAME", file)
    assert local_name() == "UTC+09:00"
    file.write_text("Asia/Tokyo\n")
    assert local_name() == "Asia/Tokyo"
    file.write_text("Europe/Berlin\n")
    assert local_name() == "UTC+09:00"
    link.symlink_to("/usr/share/zoneinfo/Asia/Tokyo")
    assert local_name() == "Asia/Tokyo"

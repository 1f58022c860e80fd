"""`ctx["enqueue_time"]` in the zone that arq reads from the environment."""

from datetime import UTC, datetime, timedelta

import pytest

from worker.engine import arq_time
from worker.engine.arq_time import in_arqs_zone

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


@pytest.fixture(autouse=True)
def asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is read once a process."""
    for name in arq_time._VARIABLES:
        monkeypatch.delenv(name, raising=False)
    arq_time._zone.cache_clear()


@pytest.mark.parametrize("variable", ["ARQ_TIMEZONE", "TIMEZONE"])
def test_the_zone_is_the_environments(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    """The moment stays the same."""
    monkeypatch.setenv(variable, "Asia/Shanghai")
    assert in_arqs_zone(NOON) == NOON
    assert in_arqs_zone(NOON).utcoffset() == timedelta(hours=8)


def test_without_a_zone_it_is_utc() -> None:
    """As it was."""
    assert in_arqs_zone(NOON) is NOON


@pytest.mark.parametrize("name", ["No/Where", "/etc/passwd", "Europe"])
def test_an_unknown_zone_is_named_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    """Once, and the time is in UTC."""
    monkeypatch.setenv("ARQ_TIMEZONE", name)
    assert in_arqs_zone(NOON) is in_arqs_zone(NOON) is NOON
    assert [record.getMessage() for record in caplog.records] == [
        f"ARQ_TIMEZONE={name!r} is not the name of a time zone: ctx['enqueue_time'] is in UTC"
    ]

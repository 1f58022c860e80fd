"""Time zones by name: those of IANA, fixed offsets as ``UTC+09:00``, and the zone of this system."""

import logging
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

from worker.errors import TaskDefinitionError

logger = logging.getLogger("worker")

_OFFSET = re.compile(r"UTC([+-])(\d\d):(\d\d)(?::(\d\d))?")
_LINK, _NAME = Path("/etc/localtime"), Path("/etc/timezone")


def zone(name: str) -> tzinfo:
    """The zone of this name.

    Raises:
        ZoneInfoNotFoundError, ValueError, TypeError, OSError: there is none.
    """
    offset = _OFFSET.fullmatch(name)
    if offset is None:
        return ZoneInfo(name)
    sign, *parts = offset.groups(default="0")
    hours, minutes, seconds = map(int, parts)
    ahead = timedelta(hours=hours, minutes=minutes, seconds=seconds)
    return timezone(ahead if sign == "+" else -ahead)


def name_of(given: tzinfo | str) -> str:
    """The name of a zone, of the standard library's or of another's classes.

    Raises:
        TaskDefinitionError: the zone has no name, and no fixed offset.
    """
    if isinstance(given, str):
        return given
    name = getattr(given, "key", None) or getattr(given, "zone", None)  # zoneinfo's, and pytz's
    if isinstance(name, str):
        return name
    ahead = given.utcoffset(None)
    if ahead is None or ahead.microseconds:
        raise TaskDefinitionError(f"timezone={given!r} has no name: write zoneinfo.ZoneInfo('Europe/Berlin')")
    return _fixed(ahead)


def local_name() -> str:
    """The name of this system's zone. If it has none, its offset at this moment, as arq has it."""
    here = datetime.now(UTC).astimezone()
    year = [datetime(here.year, month, 1, tzinfo=UTC) for month in range(1, 13)]
    for name in _names():
        try:
            candidate = zone(name)
        except Exception:  # noqa: BLE001, S112 - ZoneInfo has many errors for what is no name
            continue
        # The C library may read another file than ZoneInfo does.
        if all(moment.astimezone(candidate).utcoffset() == moment.astimezone().utcoffset() for moment in year):
            return name
    if len({moment.astimezone().utcoffset() for moment in year}) > 1:
        logger.warning(
            "this system's time zone has no name, so arq's cron() follows its offset of now until the worker restarts: "
            "set TZ, for example TZ=Europe/Berlin"
        )
    return _fixed(here.utcoffset() or timedelta())


def _names() -> Iterator[str]:
    """The names that this system's zone may have."""
    variable = os.environ.get("TZ")
    if variable is not None:
        yield variable.removeprefix(":").rpartition("zoneinfo/")[2]
        return
    yield str(_LINK.resolve()).rpartition("zoneinfo/")[2]
    if _NAME.is_file():
        yield _NAME.read_text().strip()
    yield "UTC"


def _fixed(ahead: timedelta) -> str:
    if not ahead:
        return "UTC"
    sign = "-" if ahead < timedelta() else "+"
    hours, rest = divmod(round(abs(ahead).total_seconds()), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"UTC{sign}{hours:02}:{minutes:02}" + (f":{seconds:02}" if seconds else "")

"""Times on the command line: ``--until 30m``, ``--until 2030-01-31T08:00:00+01:00``, and "in 5 min", "3 h ago"."""

import re
from datetime import UTC, datetime, timedelta

from db.text.printable import printable
from worker.errors import ConfigError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LENGTH = re.compile(r"(\d+)([smhd])")
_STEPS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def parse_until(text: str) -> datetime:
    """The time that a length from now (``90s``, ``30m``, ``2h``, ``1d``) or a time with its zone names.

    Raises:
        ConfigError: it is neither, or it is not in the future, or in no year that has a name.
    """
    now, shown = datetime.now(UTC), printable(text)
    try:
        if (match := _LENGTH.fullmatch(text.strip())) is not None:
            end = now + timedelta(seconds=int(match[1]) * _UNITS[match[2]])
        else:
            end = datetime.fromisoformat(text).astimezone(UTC)
    except OverflowError:
        raise ConfigError(f"--until {shown}: there is no such time; without --until a pause has no end") from None
    except ValueError:
        raise ConfigError(
            f"--until {shown}: write a length as 30m or 2h, or a time as 2030-01-31T08:00+01:00"
        ) from None
    if end <= now:
        raise ConfigError(f"--until {shown}: that is not in the future: write a length as 30m or 2h, or a later time")
    return end


def length(seconds: float) -> str:
    """A length of time in its largest unit: ``45 s``, ``3 min``, ``2 h``, ``4 d``."""
    for size, unit in _STEPS:
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds * 1000:.0f} ms"


def relative(time: datetime | None) -> str:
    """A time as seen from now: ``in 5 min``, ``3 h ago``. Empty for None."""
    if time is None:
        return ""
    seconds = (time - datetime.now(UTC)).total_seconds()
    return f"in {length(seconds)}" if seconds > 0 else f"{length(-seconds)} ago"

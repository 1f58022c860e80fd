"""Values as text of a page: numbers, times, JSON. Text from outside is escaped, and its control characters shown."""

import json
import re
import time
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

from db.text.printable import printable, printable_lines
from worker.admin.job_line import Count
from worker.context import from_milliseconds

NONE = "—"
"""What stands for a value that is not known."""
LONGEST_SHOWN = 24_000
"""Characters of a value that a page shows. The rest can be downloaded."""
_JSON = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?|\b(true|false|null|NaN|Infinity)\b|(-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)')
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)")
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "m"))


def line(value: object) -> str:
    """Text from outside as one line, with its control characters shown as escapes."""
    return printable(str(value))


def lines(value: object) -> str:
    """Text from outside with its line breaks, and its other control characters shown as escapes."""
    return printable_lines(str(value))


def number(value: float | Count | None) -> str:
    """1234567 as 1,234,567. A count that ended at its limit has a plus."""
    if value is None:
        return NONE
    if isinstance(value, Count):
        return f"{value.number:,}{'+' if value.is_more else ''}"
    return f"{value:,.0f}"


def short_number(value: float) -> str:
    """1234567 as 1.2M, for places without room."""
    for limit, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.1f}".removesuffix(".0") + unit
    return f"{value:.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def rate(value: float | None) -> str:
    """Jobs a second."""
    if value is None:
        return NONE
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2g}"


def duration(seconds: float | None) -> str:
    """A length of time: 12 ms, 3.4 s, 5 m 12 s, 2 h 5 m, 3 d 4 h."""
    if seconds is None:
        return NONE
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    whole = int(seconds)
    for (size, unit), (smaller, name) in zip(_UNITS, (*_UNITS[1:], (1, "s")), strict=True):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit} {rest} {name}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"


def milliseconds(value: float | None) -> str:
    """A length of time in milliseconds, as `duration` writes it."""
    return duration(None if value is None else value / 1000)


def moment(value: datetime | int | None) -> str:
    """A time, to the second, in UTC."""
    when = _as_datetime(value)
    return "" if when is None else f"{when:%Y-%m-%d %H:%M:%S} UTC"


def clock(value: datetime | int | None) -> str:
    """The time of the day in UTC, with the date if it is another day."""
    when = _as_datetime(value)
    if when is None:
        return ""
    return f"{when:%H:%M:%S}" if when.date() == datetime.now(UTC).date() else f"{when:%d %b %H:%M}"


def clock_short(value: datetime) -> str:
    """The hour and minute in UTC, with the day where that is not today."""
    return f"{value:%H:%M}" if value.date() == datetime.now(UTC).date() else f"{value:%a %H:%M}"


def elapsed(value: datetime | int) -> str:
    """How long something has gone on."""
    when = _as_datetime(value)
    return NONE if when is None else duration(max(time.time() - when.timestamp(), 0.0))


def iso(value: datetime | int | None) -> str:
    when = _as_datetime(value)
    return "" if when is None else when.isoformat(timespec="milliseconds")


def ago(value: datetime | int | None) -> str:
    """How long ago a time was, or in how long it will be."""
    when = _as_datetime(value)
    if when is None:
        return ""
    seconds = time.time() - when.timestamp()
    if abs(seconds) < 1:
        return "now"
    text = _rough(abs(seconds))
    return f"{text} ago" if seconds > 0 else f"in {text}"


def when(value: datetime | int | None) -> Markup:
    """A time as people say it, with the exact one for those who point at it."""
    if value is None:
        return Markup('<span class="none">—</span>')
    return Markup('<time datetime="{}" title="{}">{}</time>').format(iso(value), moment(value), ago(value))


def size(value: int) -> str:
    """Bytes: 512 B, 1.4 kB, 12 MB."""
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.1f}".removesuffix(".0") + f" {unit}"
    return f"{value} B"


def as_json(value: Any, *, indent: int | None = 2) -> str:
    """A value as JSON for people."""
    return json.dumps(value, indent=indent, ensure_ascii=False, default=repr)


def colored_json(value: Any) -> Markup:
    """A value as JSON with marked keys and values, cut at `LONGEST_SHOWN`."""
    text = as_json(value)
    if len(text) > LONGEST_SHOWN:
        text = text[:LONGEST_SHOWN] + " …"
    parts, end = [], 0
    for found in _JSON.finditer(text):
        parts.append(escape(lines(text[end : found.start()])))
        string, colon, word, _ = found.groups()
        kind = ("k" if colon else "s") if string else "w" if word else "n"
        whole = string if colon else found[0]
        parts.append(Markup('<span class="{}">{}</span>{}').format(kind, lines(whole), colon or ""))
        end = found.end()
    parts.append(escape(lines(text[end:])))
    return Markup("").join(parts)


def is_long(value: Any) -> bool:
    """Whether `colored_json` cuts the value, or a page cuts the text."""
    return len(value if isinstance(value, str) else as_json(value)) > LONGEST_SHOWN


def arguments(value: Any) -> str:
    """The arguments of a job in one line, as a call has them."""
    if not isinstance(value, dict):
        return "" if value is None else line(as_json(value, indent=None))
    parts = [as_json(each, indent=None) for each in value.get("args") or ()]
    parts += [f"{name}={as_json(each, indent=None)}" for name, each in (value.get("kwargs") or {}).items()]
    return line(", ".join(parts))[:300]


def capitalize_first(value: str) -> str:
    """The text with a capital at its beginning, and without a full stop at its end."""
    return (value[:1].upper() + value[1:]).removesuffix(".")


def evidence(value: Any) -> str | Markup:
    """A fact that a reason was read from."""
    if isinstance(value, datetime):
        return when(value)
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, str) and _TIME.fullmatch(value):
        return when(datetime.fromisoformat(value))
    if isinstance(value, list | tuple | set | frozenset):
        return line(", ".join(map(str, value)))
    return line(as_json(value, indent=None)) if isinstance(value, dict) else line(value)


def first_line(value: str | None) -> str:
    return "" if value is None else line(value.strip().split("\n", 1)[0])


def _rough(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    for limit, unit in _UNITS:
        if seconds >= limit:
            return f"{seconds / limit:.0f} {unit}"
    return f"{seconds:.0f} s"


def _as_datetime(value: datetime | int | None) -> datetime | None:
    if value is None or isinstance(value, datetime):
        return value
    try:
        return from_milliseconds(value)
    except (ValueError, OverflowError):
        return None


FILTERS = {
    "ago": ago,
    "arguments": arguments,
    "capitalize_first": capitalize_first,
    "clock": clock,
    "clock_short": clock_short,
    "colored_json": colored_json,
    "duration": duration,
    "elapsed": elapsed,
    "evidence": evidence,
    "first_line": first_line,
    "iso": iso,
    "line": line,
    "lines": lines,
    "milliseconds": milliseconds,
    "moment": moment,
    "number": number,
    "rate": rate,
    "short_number": short_number,
    "size": size,
    "when": when,
}

"""Log records whose text cannot forge another record. See `db.text.printable`.

A filter on our loggers and not on handlers, which belong to the project that uses Tandem.
"""

import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from db.text.printable import printable, printable_lines

_INDENT = "  "  # before a traceback's lines, so that none begins where a log line does


def keep_printable(logger: str) -> None:
    """Make every record of the logger with this name printable."""
    logging.getLogger(logger).addFilter(make_printable)


def make_printable(record: logging.LogRecord) -> bool:
    """Make a record printable. A filter of a logger: it keeps every record."""
    record.msg = _as_printable(record.msg)
    if isinstance(record.args, tuple):
        record.args = tuple(map(_as_printable, record.args))
    elif isinstance(record.args, Mapping):
        record.args = {name: _as_printable(value) for name, value in record.args.items()}
    if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
        record.exc_text = _text_of(record.exc_info[1])
    return True


def _as_printable(value: Any) -> Any:
    """`value` itself if its text is printable, else its text made printable."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, int | float):
        return value
    try:
        text = str(value)
    except Exception as error:  # noqa: BLE001 - a `__str__` may raise anything, and logging must go on
        return f"<cannot be printed: {type(error).__name__}>"
    return value if text.isprintable() else printable(text)


def _text_of(error: BaseException) -> str | None:
    """The traceback made printable, or None if all its messages are plain lines: then the formatter makes it."""
    if all(map(str.isprintable, _messages(error))):
        return None
    text = "".join(traceback.format_exception(error)).rstrip("\n")
    return _INDENT + printable_lines(text, indent=_INDENT)


def _messages(error: BaseException) -> Iterator[str]:
    """The message of `error` and all others that a traceback shows: causes, members of groups, notes."""
    seen: set[int] = set()
    errors: list[BaseException | None] = [error]
    while errors:
        one = errors.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        with suppress(Exception):  # a `__str__` may raise anything; a traceback leaves such a text out
            yield str(one)
        yield from map(str, getattr(one, "__notes__", ()))
        errors += (one.__cause__, one.__context__, *getattr(one, "exceptions", ()))

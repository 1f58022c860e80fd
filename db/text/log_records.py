"""Log records whose text cannot forge another one: see `db.text.printable`.

On our loggers rather than on handlers: these are the project's own, and so is their format.
"""

import logging
import traceback
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from db.text.printable import printable, printable_lines

_INDENT = "  "  # of a traceback's lines: a log line begins further left


def keep_printable(logger: str) -> None:
    """Make all that is logged through the logger of this name printable."""
    logging.getLogger(logger).addFilter(_make_printable)


def _make_printable(record: logging.LogRecord) -> bool:
    record.msg = _as_printable(record.msg)
    if isinstance(record.args, tuple):
        record.args = tuple(map(_as_printable, record.args))
    elif isinstance(record.args, Mapping):
        record.args = {name: _as_printable(value) for name, value in record.args.items()}
    if record.exc_info and record.exc_info[1] is not None and not record.exc_text:
        record.exc_text = _text_of(record.exc_info[1])
    return True


def _as_printable(value: Any) -> Any:
    """`value` itself where what a record shows of it is printable."""
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
    """The traceback, where what the error says is more than a plain line; else the handler's formatter makes it."""
    if all(map(str.isprintable, _messages(error))):
        return None
    text = "".join(traceback.format_exception(error)).rstrip("\n")
    return _INDENT + printable_lines(text, indent=_INDENT)


def _messages(error: BaseException) -> Iterator[str]:
    """What it says, and all that is shown with it: causes, members of groups, notes."""
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

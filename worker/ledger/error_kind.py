"""The kind of an error: errors that differ in numbers only are of one kind."""

import re

from sqlalchemy import ColumnElement, func

_NUMBER = "#"
_BEGINNING = 300  # the first characters of an error, which are compared
_DOUBLINGS = 6  # replacements of ## by #: enough for a number of 64 digits

_WORD_WITH_DIGITS = re.compile(r"[\w-]*\d[\w-]*")  # also 0x7f3a, a UUID, user17


def kind_of(error: str) -> str:
    """The first line of `error`, with ``#`` for each number and each word with digits. The exception's type stays."""
    kind, colon, message = error[:_BEGINNING].partition("\n")[0].partition(": ")
    return f"{kind}{colon}{_WORD_WITH_DIGITS.sub(_NUMBER, message)}"


def beginning(error: ColumnElement[str | None]) -> ColumnElement[str | None]:
    """The part of an error that `kind_of` uses, in SQL."""
    return func.substr(error, 1, _BEGINNING)


def without_numbers(error: ColumnElement[str | None]) -> ColumnElement[str | None]:
    """The error without its numbers, in SQL.

    Equal values are of one kind. Errors of one kind may have several values, as SQLite has no regular expressions.
    """
    masked = beginning(error)
    for digit in "0123456789":
        masked = func.replace(masked, digit, _NUMBER)
    for _ in range(_DOUBLINGS):
        masked = func.replace(masked, _NUMBER * 2, _NUMBER)
    return masked

"""Which failures are of one kind: those whose errors differ in numbers only."""

import re

from sqlalchemy import ColumnElement, func

_NUMBER = "#"
_BEGINNING = 300  # characters of an error that are compared
_DOUBLINGS = 6  # of digits that become one sign: as many as a 64-digit number has

_WORD_WITH_DIGITS = re.compile(r"[\w-]*\d[\w-]*")  # also 0x7f3a, a UUID, user17


def kind_of(error: str) -> str:
    """The first line of `error`, with ``#`` for each number and each word with digits, but for the exception's type."""
    kind, colon, message = error[:_BEGINNING].partition("\n")[0].partition(": ")
    return f"{kind}{colon}{_WORD_WITH_DIGITS.sub(_NUMBER, message)}"


def beginning(error: ColumnElement[str | None]) -> ColumnElement[str | None]:
    """What `kind_of` looks at, in SQL."""
    return func.substr(error, 1, _BEGINNING)


def without_numbers(error: ColumnElement[str | None]) -> ColumnElement[str | None]:
    """In SQL: equal only for errors of one kind. A kind may have several: SQLite knows no regular expressions."""
    masked = beginning(error)
    for digit in "0123456789":
        masked = func.replace(masked, digit, _NUMBER)
    for _ in range(_DOUBLINGS):
        masked = func.replace(masked, _NUMBER * 2, _NUMBER)
    return masked

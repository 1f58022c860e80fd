"""Checking that an argument arrives as it was sent, although it travels as JSON.

JSON has no tuples, sets, dates or enums. Pydantic restores them by the annotations alone. If an annotation leaves a
choice (none, `Any`, ``UUID | str``, a model's own serializers), a value may silently arrive as another one. Datetimes
and times are not safe either: Python has a zone where JSON has an offset of hours and minutes.
"""

import types
from collections import deque
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin
from uuid import UUID

from worker.errors import PayloadNotJSONError

if TYPE_CHECKING:
    from pydantic import BaseModel

_TIME_TYPES = frozenset({datetime, time})
_EXACT = _TIME_TYPES | {bool, int, float, str, bytes, date, timedelta, Decimal, Path, UUID, None, types.NoneType}
_EXACT_KEYS = frozenset({int, str})
_A_MINUTE = timedelta(minutes=1)
_ZONES = (
    "JSON has no time zones: a datetime arrives with its offset from UTC in whole minutes, and a time arrives only if "
    "its zone has one offset all year (for example timezone.utc). Pass the zone's name as another argument"
)


def is_exact(annotation: Any) -> bool:
    """Whether every value of `annotation` arrives as it was sent: known types, and containers of annotated types.

    For datetimes and times that holds if `require_offset` accepts them.
    """
    if annotation in _EXACT:
        return True
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return len(parts) == 2 and types.NoneType in parts and all(map(is_exact, parts))
    if origin is dict:
        return parts[0] in _EXACT_KEYS and is_exact(parts[1])
    if origin is tuple:
        return all(is_exact(part) for part in parts if part is not ...)
    return origin in (list, set, frozenset) and is_exact(parts[0])


def has_times(annotation: Any) -> bool:
    """Whether values of an exact `annotation` contain datetimes or times."""
    return annotation in _TIME_TYPES or any(map(has_times, get_args(annotation)))


def require_offset(name: str, sent: Any) -> None:
    """Check that all datetimes and times in a value of an exact annotation will arrive, without decoding them.

    Raises:
        PayloadNotJSONError: the parameter `name` would get another time than the one that was sent.
    """
    if not _has_offset(sent):
        raise PayloadNotJSONError(f"{name}: {_ZONES}")


def require_same(name: str, sent: Any, received: Any) -> None:
    """Check that a decoded value is the one that was sent.

    Raises:
        PayloadNotJSONError: the parameter `name` would get another value than the one that was sent.
    """
    if not _is_same(sent, received):
        raise PayloadNotJSONError(
            f"{name}: JSON would change this {type(sent).__name__}: annotate the parameter with the type of its value "
            "(no union that leaves a choice), or pass what JSON has: None, bool, int, float, str, list, dict with "
            f"string keys. {_ZONES}"
        )


def _is_same(sent: Any, received: Any) -> bool:
    """Whether two values are equal, with equal types at every level."""
    if isinstance(sent, datetime | time):
        return isinstance(received, datetime | time) and _is_same_time(sent, received)
    if type(sent) is not type(received):
        return False
    match sent:
        case list() | tuple() | deque():
            return len(sent) == len(received) and all(map(_is_same, sent, received))
        case dict():
            return len(sent) == len(received) and all(map(_is_same, sent.items(), received.items()))
        case set() | frozenset():
            arrived = {value: value for value in received}
            return sent == received and all(_is_same(value, arrived[value]) for value in sent)
        case Enum():
            return sent is received
        case _ if isinstance(sent, _base_model()):
            # Not by __dict__, which also holds the values of functools.cached_property.
            return _is_same(_contents(sent), _contents(received))
        case _ if is_dataclass(sent):
            return all(_is_same(getattr(sent, field.name), getattr(received, field.name)) for field in fields(sent))
        case _:
            # A type without its own equality cannot be compared; it was at least decoded.
            return bool(sent == received) or not _has_equality(type(sent))


@cache
def _base_model() -> "type[BaseModel]":
    from pydantic import BaseModel  # noqa: PLC0415 - the first validation needs pydantic, and `import worker` does not

    return BaseModel


def _is_same_time(sent: datetime | time, received: datetime | time) -> bool:
    """Whether two times have equal figures and an equal offset from UTC. The zone's name and a subclass may differ.

    Not by `==`, which compares moments: it ignores offsets, and in a repeated hour it finds times of different zones
    unequal.
    """
    return (
        isinstance(sent, type(received))
        and sent.replace(tzinfo=None) == received.replace(tzinfo=None)
        and sent.utcoffset() == received.utcoffset()
        and _has_offset(sent)
    )


def _has_offset(value: Any) -> bool:
    """Whether JSON can carry the offsets of all datetimes and times in `value`."""
    match value:
        case datetime() | time():
            if value.tzinfo is None:
                return True
            offset = value.utcoffset()  # None for a time of day in a zone with summer time
            return offset is not None and not offset % _A_MINUTE
        case list() | tuple() | set() | frozenset():
            return all(map(_has_offset, value))
        case dict():
            return all(map(_has_offset, value.values()))
        case _:
            return True


def _contents(model: "BaseModel") -> dict[str, Any]:
    """The values of a model: its fields, its extra fields, and its private attributes."""
    fields = {name: value for name, value in model.__dict__.items() if name in type(model).model_fields}
    return fields | (model.model_extra or {}) | (model.__pydantic_private__ or {})


def _has_equality(kind: Any) -> bool:
    return kind.__eq__ is not object.__eq__

"""Whether JSON gives back what it was given.

JSON has no tuples, sets, dates or enums, and pydantic puts them back by the annotations alone. Where these leave a
choice (none, `Any`, ``UUID | str``, a model's own serializers), a value may arrive as another one, and nobody says so.
Nor is a time on the clock sure to arrive: JSON has an offset of hours and minutes where Python has a zone.
"""

import types
from collections import deque
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel

from worker.errors import PayloadNotJSONError

_ON_THE_CLOCK = frozenset({datetime, time})
_EXACT = _ON_THE_CLOCK | {bool, int, float, str, bytes, date, timedelta, Decimal, Path, UUID, None, types.NoneType}
_EXACT_KEYS = frozenset({int, str})
_A_MINUTE = timedelta(minutes=1)
_ZONES = (
    "JSON has no time zones: a datetime arrives with its offset from UTC, in whole minutes, and a time only where "
    "its zone has one all year (timezone.utc, say). Pass the name of the zone besides, as a str"
)


def is_exact(annotation: Any) -> bool:
    """Whether every value of `annotation` comes back as it was: known types, in containers that say what they hold.

    Of a datetime or a time that holds for those that `require_offset` lets pass.
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


def is_on_the_clock(annotation: Any) -> bool:
    """Whether there are datetimes or times in values of an exact `annotation`."""
    return annotation in _ON_THE_CLOCK or any(map(is_on_the_clock, get_args(annotation)))


def require_offset(name: str, sent: Any) -> None:
    """See that all datetimes and times in a value of an exact annotation arrive, without reading them back.

    Raises:
        PayloadNotJSONError: the parameter `name` would get another time than was sent.
    """
    if not _has_offset(sent):
        raise PayloadNotJSONError(f"{name}: {_ZONES}")


def require_same(name: str, sent: Any, received: Any) -> None:
    """
    Raises:
        PayloadNotJSONError: the parameter `name` would get something else than was sent.
    """
    if not _same(sent, received):
        raise PayloadNotJSONError(
            f"{name}: JSON would change this {type(sent).__name__}: annotate the parameter with the type of its value "
            "(no union that leaves a choice), or pass what JSON has: None, bool, int, float, str, list, dict with "
            f"string keys. {_ZONES}"
        )


def _same(sent: Any, received: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if isinstance(sent, datetime | time):
        return isinstance(received, datetime | time) and _same_on_the_clock(sent, received)
    if type(sent) is not type(received):
        return False
    match sent:
        case list() | tuple() | deque():
            return len(sent) == len(received) and all(map(_same, sent, received))
        case dict():
            return len(sent) == len(received) and all(map(_same, sent.items(), received.items()))
        case set() | frozenset():
            arrived = {value: value for value in received}
            return sent == received and all(_same(value, arrived[value]) for value in sent)
        case Enum():
            return sent is received
        case BaseModel():
            # Not by its __dict__, where functools.cached_property keeps what it has computed.
            return _same(_contents(sent), _contents(received))
        case _ if is_dataclass(sent):
            return all(_same(getattr(sent, field.name), getattr(received, field.name)) for field in fields(sent))
        case _:
            # A type that cannot tell was at least put together again.
            return bool(sent == received) or not _can_tell(type(sent))


def _same_on_the_clock(sent: datetime | time, received: datetime | time) -> bool:
    """The same figures at the same offset from UTC; the name of the zone need not arrive, nor a subclass.

    `==` takes 9:00 in Berlin for 9:00, and in the hour that the clock shows twice nothing for equal.
    """
    return (
        isinstance(sent, type(received))
        and sent.replace(tzinfo=None) == received.replace(tzinfo=None)
        and sent.utcoffset() == received.utcoffset()
        and _has_offset(sent)
    )


def _has_offset(value: Any) -> bool:
    """Whether JSON can say where on the clock all of `value` is."""
    match value:
        case datetime() | time():
            if value.tzinfo is None:
                return True
            offset = value.utcoffset()  # a time of day has none in a zone with summer time
            return offset is not None and not offset % _A_MINUTE
        case list() | tuple() | set() | frozenset():
            return all(map(_has_offset, value))
        case dict():
            return all(map(_has_offset, value.values()))
        case _:
            return True


def _contents(model: BaseModel) -> dict[str, Any]:
    """What a model holds: its fields, those that it has besides, and its private attributes."""
    fields = {name: value for name, value in model.__dict__.items() if name in type(model).model_fields}
    return fields | (model.model_extra or {}) | (model.__pydantic_private__ or {})


def _can_tell(kind: Any) -> bool:
    return kind.__eq__ is not object.__eq__

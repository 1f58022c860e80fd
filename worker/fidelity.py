"""Whether JSON gives back what it was given.

JSON has no tuples, sets, dates or enums, and pydantic puts them back by the annotations alone. Where these leave a
choice (none, `Any`, ``UUID | str``, a model's own serializers), a value may arrive as another one, and nobody says so.
"""

import types
from dataclasses import fields, is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel

from worker.errors import PayloadNotJSONError

_EXACT = frozenset(
    {bool, int, float, str, bytes, date, datetime, time, timedelta, Decimal, Path, UUID, None, types.NoneType}
)
_EXACT_KEYS = frozenset({int, str})


def is_exact(annotation: Any) -> bool:
    """Whether every value of `annotation` comes back as it was: known types, in containers that say what they hold."""
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


def require_same(name: str, sent: Any, received: Any) -> None:
    """
    Raises:
        PayloadNotJSONError: the parameter `name` would get something else than was sent.
    """
    if not _same(sent, received):
        raise PayloadNotJSONError(
            f"{name}: JSON would change this {type(sent).__name__}: annotate the parameter with the type of its value "
            "(no union that leaves a choice), or pass what JSON has: None, bool, int, float, str, list, dict with "
            "string keys"
        )


def _same(sent: Any, received: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(sent) is not type(received):
        return False
    match sent:
        case list() | tuple():
            return len(sent) == len(received) and all(map(_same, sent, received))
        case dict():
            return len(sent) == len(received) and all(map(_same, sent.items(), received.items()))
        case Enum():
            return sent is received
        case BaseModel():
            return bool(sent == received) and _same(sent.__dict__, received.__dict__)
        case _ if is_dataclass(sent):
            return all(_same(getattr(sent, field.name), getattr(received, field.name)) for field in fields(sent))
        case _:
            # A type that cannot tell was at least put together again.
            return bool(sent == received) or not _can_tell(type(sent))


def _can_tell(kind: Any) -> bool:
    return kind.__eq__ is not object.__eq__

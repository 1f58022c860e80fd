"""Matching the arguments of jobs: a part of them is enough, ``...`` is anything, and a predicate decides by itself."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel


def matches(expected: Any, value: Any) -> bool:
    """Whether a value is as expected.

    A dict, and a model, may have more keys than the expected dict. A list has the same length. ``...`` is any value. A
    function decides: it gets the value. Everything else is compared with ``==``.
    """
    if expected is ...:
        return True
    if isinstance(expected, Mapping):
        return _has_items(expected, value)
    if isinstance(expected, str | bytes):
        return bool(expected == value)
    if isinstance(expected, Sequence):
        return _has_members(expected, value)
    if _is_predicate(expected):
        return bool(expected(value))
    return bool(expected == value)


def _has_items(expected: Mapping[Any, Any], value: Any) -> bool:
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if not isinstance(value, Mapping):
        return False
    return all(key in value and matches(each, value[key]) for key, each in expected.items())


def _has_members(expected: Sequence[Any], value: Any) -> bool:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence) or len(expected) != len(value):
        return False
    return all(map(matches, expected, value))


def _is_predicate(expected: Any) -> bool:
    """Whether it is a function. A class is a value, as is an object that compares itself."""
    return isinstance(expected, Callable) and not isinstance(expected, type)  # type: ignore[arg-type]  # a protocol

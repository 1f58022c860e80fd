"""Waiting for what other processes and tasks do, without sleeping and hoping."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from tests.stopwatch import Stopwatch

T = TypeVar("T")

AT_ONCE = 4.0
"""Seconds that a busy machine may take for what waits for nothing; whatever it must not wait for takes longer."""
_AT_ALL = 30.0  # seconds that a machine may stand still, and its disks


async def at_once(awaitable: Awaitable[T]) -> T:
    """What `awaitable` gives, which takes no longer than `AT_ONCE` of a machine that runs."""
    watch = Stopwatch()
    async with asyncio.timeout(_AT_ALL):
        given = await awaitable
    assert watch.seconds_running < AT_ONCE
    return given


async def eventually(
    condition: Callable[[], Any | Awaitable[Any]],
    timeout: float = 20,  # noqa: ASYNC109 - it names what was waited for, which asyncio.timeout cannot
    every: float = 0.01,
    *,
    equals: object = ...,
) -> Any:
    """Call `condition` every `every` seconds until it is true, or is `equals`, and return what it gave.

    `condition` may be async. What it raises is raised. Raises `AssertionError`, naming the condition and what it
    was at last, after `timeout` seconds.
    """
    watch = Stopwatch()
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value == equals or (equals is ... and value):
            return value
        if watch.seconds_running > timeout:
            wanted = "true" if equals is ... else repr(equals)
            raise AssertionError(f"not {wanted} after {timeout:g} s, but {value!r}: {_name(condition)}")
        await asyncio.sleep(every)


def _name(condition: Callable[[], object]) -> str:
    name: str = getattr(condition, "__qualname__", repr(condition))
    if "<lambda>" not in name:
        return name
    try:
        return inspect.getsource(condition).strip()
    except OSError:
        return name

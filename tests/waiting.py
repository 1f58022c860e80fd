"""Waiting for what other processes and tasks do, without sleeping and hoping."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any

AT_ONCE = 4.0
"""Seconds that a busy machine may take for what waits for nothing; whatever it must not wait for takes longer."""


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
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value == equals or (equals is ... and value):
            return value
        if time.monotonic() > deadline:
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

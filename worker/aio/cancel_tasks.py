"""Cancelling asyncio tasks that run for ever."""

import asyncio
from collections.abc import Iterable
from typing import Any

_CANCEL_AGAIN = 0.5  # seconds; less would interrupt the tasks' own cleanup


async def cancel_tasks(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancel the tasks, and wait until they have ended in any way.

    One cancellation may not be enough: `asyncio.wait_for` of Python 3.11, with which redis-py sends its commands, drops
    a cancellation that arrives just as it finishes (https://bugs.python.org/issue37658).
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        ended, left = await asyncio.wait(left, timeout=_CANCEL_AGAIN)
        for task in ended:
            if not task.cancelled():
                task.exception()  # marks the exception as retrieved, so that asyncio does not log it

"""Ending asyncio tasks that run for ever."""

import asyncio
from collections.abc import Iterable
from typing import Any

_ASK_AGAIN = 0.5  # seconds: less would interrupt what they do to end in order


async def cancel_tasks(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancel the tasks and wait until they have ended, however.

    Once may not be enough: Python 3.11's `asyncio.wait_for`, by which redis-py sends its commands, drops a cancellation
    that comes just as it is done (https://bugs.python.org/issue37658).
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        ended, left = await asyncio.wait(left, timeout=_ASK_AGAIN)
        for task in ended:
            if not task.cancelled():
                task.exception()  # so that nobody is told that it was never looked at

"""Collecting items that become ready within a few iterations of the event loop, for one round trip."""

import asyncio
from collections.abc import Callable

_ITERATIONS = 4  # they halve the round trips of jobs that add a row; eight iterations save hardly more


async def coalesce(enough: Callable[[], bool]) -> None:
    """Yield to the event loop for a few iterations, until there is `enough` for a round trip.

    Iterations and not time: a loop with nothing else to do finishes them at once.
    """
    for _ in range(_ITERATIONS):
        if enough():
            return
        await asyncio.sleep(0)

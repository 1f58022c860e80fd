"""What becomes ready within a few turns of the event loop shares one round trip."""

import asyncio
from collections.abc import Callable

_TURNS = 4  # with jobs that add a row they halve the round trips; eight save hardly more


async def coalesce(enough: Callable[[], bool]) -> None:
    """Let what is ready to run go first, for a few turns, until there is `enough` for a round trip.

    Turns and not time: a loop that has nothing else to do takes them at once.
    """
    for _ in range(_TURNS):
        if enough():
            return
        await asyncio.sleep(0)

"""``TimeSlices``: computing for long on an event loop without blocking it."""

import asyncio
import time

_SLICE = 0.004  # seconds; a fifth of what the other tasks of a loop hardly notice, as a slice may end late


class TimeSlices:
    """Divides a long computation into slices, between which the loop runs its other tasks."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    async def rest(self) -> None:
        """Let the other tasks run if the slice is over. Call it after each short step."""
        if time.perf_counter() - self._began > _SLICE:
            await asyncio.sleep(0)
            self._began = time.perf_counter()

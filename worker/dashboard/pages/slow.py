"""``SlowValue``: a value that takes a while to read. A page shows the last one known, and does not wait for long."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Generic, TypeVar

from worker.aio.background import Background

T = TypeVar("T")

_FRESH = 3.0  # seconds for which a value is not read again
_PATIENCE = 0.12  # seconds that a page waits


class SlowValue(Generic[T]):
    """The latest known value of `read`, which is called at most once at a time, and only while pages ask for it.

    Args:
        read: reads the value.
        background: where it is read.
        fresh: seconds for which a value is not read again.
    """

    def __init__(self, read: Callable[[], Awaitable[T]], background: Background, *, fresh: float = _FRESH) -> None:
        self._read = read
        self._background = background
        self._fresh = fresh
        self._value: T | None = None
        self._read_at = -fresh
        self._reading: asyncio.Task[None] | None = None

    async def get(self) -> T | None:
        """The value; None if it is not known yet.

        Raises what `read` raises, if that is known in time.
        """
        if time.monotonic() - self._read_at < self._fresh:
            return self._value
        if self._reading is None or self._reading.done():
            self._reading = self._background.start(self._read_again())
        reading = self._reading
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(reading), _PATIENCE)
        return self._value

    def forget(self) -> None:
        """Read the value again for the next page, as an action has changed it."""
        self._read_at = -self._fresh

    async def _read_again(self) -> None:
        self._value = await self._read()
        self._read_at = time.monotonic()

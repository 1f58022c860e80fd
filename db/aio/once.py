"""``Once``: an asynchronous call that is made once, and that all other callers wait for."""

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

_running: ContextVar[tuple["Once", ...]] = ContextVar("db.once", default=())


class Once:
    """Call `action` once. A call that fails does not count, so the next caller tries again.

    Code inside the call, its child tasks included, does not wait for its own end.
    """

    def __init__(self, action: Callable[[], Awaitable[Any]]) -> None:
        self.is_done = False
        self._action = action
        self._lock: tuple[asyncio.AbstractEventLoop, asyncio.Lock] | None = None

    async def __call__(self) -> None:
        if self.is_done or self in _running.get():
            return
        async with self._lock_of_this_loop():
            if not self.is_done:
                await self._call()

    async def _call(self) -> None:
        token = _running.set((*_running.get(), self))
        try:
            await self._action()
        finally:
            _running.reset(token)
        self.is_done = True

    def _lock_of_this_loop(self) -> asyncio.Lock:
        # The loop of a call that failed may have ended by now.
        loop = asyncio.get_running_loop()
        if self._lock is None or self._lock[0] is not loop:
            self._lock = loop, asyncio.Lock()
        return self._lock[1]

"""``Loops``: the loops of an engine, each in an asyncio task of its own and supervised."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from worker.aio.cancel_tasks import cancel_tasks
from worker.engine.supervision import EngineError, supervise


class Loop(Protocol):
    async def run(self) -> None: ...


class Loops:
    """Runs loops.

    Args:
        trouble: called with a description of each failure of a loop.
    """

    def __init__(self, trouble: Callable[[str], None]) -> None:
        self._trouble = trouble
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._ending: set[str] = set()

    def start(self, name: str, loop: Loop) -> None:
        """Start a loop. It runs until it returns, is ended, or fails too often."""
        supervised = supervise(name, loop.run, trouble=self._trouble, is_ending=lambda: name in self._ending)
        self._tasks[name] = asyncio.create_task(supervised, name=name)

    async def failed(self) -> EngineError:
        """Wait until a loop has failed for good, and return its error."""
        while True:
            ended, _ = await asyncio.wait(self._tasks.values(), return_when=asyncio.FIRST_EXCEPTION)
            for task in ended:
                if not task.cancelled() and isinstance(error := task.exception(), EngineError):
                    return error
            await asyncio.Event().wait()

    async def returned(self, name: str, within: float) -> None:
        """Wait up to `within` seconds for a loop to return by itself."""
        if name in self._tasks:
            await asyncio.wait({self._tasks[name]}, timeout=within)

    async def end(self, *names: str) -> None:
        """End these loops, or all if none is named. Any other cancellation counts as a loop's failure."""
        ending = names or tuple(self._tasks)
        self._ending.update(ending)
        await cancel_tasks([self._tasks[name] for name in ending if name in self._tasks])

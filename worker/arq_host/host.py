"""``Host``: an engine inside arq's process, for ``arq worker.Settings``.

What arq's sources (0.28, ``worker.py``) require:

1. ``on_startup`` runs in arq's main task. Cancelling that task ends the process. Until then arq polls Redis, and with
   ``max_jobs=0`` claims nothing.
2. arq's own signal handlers cancel at once, so they are replaced. Draining and closing happen before the cancellation,
   as arq's ``close`` never calls ``on_shutdown`` if Redis is away.
3. In burst mode arq leaves its main task by itself when its one queue is empty. ``on_shutdown`` then stops the engine.
"""

import asyncio
from contextlib import suppress
from typing import Any

from worker.process.lifecycle import Lifecycle
from worker.process.logs import log_as_arq_does
from worker.process.runtime import Runtime


class Host:
    """Run an engine inside arq's process."""

    def __init__(self, runtime: Runtime) -> None:
        self._lifecycle = Lifecycle(runtime)
        self._leaving: asyncio.Task[None] | None = None

    async def startup(self, ctx: dict[Any, Any]) -> None:
        """arq's ``on_startup``."""
        log_as_arq_does()
        main = asyncio.current_task()
        assert main is not None  # noqa: S101 - coroutines run in tasks
        await self._lifecycle.begin(ctx)
        self._leaving = asyncio.create_task(self._leave(main))

    async def shutdown(self, _ctx: dict[Any, Any]) -> None:
        """arq's ``on_shutdown``.

        Raises:
            SystemExit: the engine had failed.
        """
        await self._lifecycle.close()
        if self._lifecycle.exit_code:
            raise SystemExit(self._lifecycle.exit_code)

    async def _leave(self, main: asyncio.Task[Any]) -> None:
        with suppress(Exception, SystemExit, KeyboardInterrupt):  # `shutdown` raises it to arq
            await self._lifecycle.ended()
        main.cancel()

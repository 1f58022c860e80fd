"""``arq worker.Settings`` as a host: arq gives the process, this gives it the work.

What arq's sources (0.28, ``worker.py``) make of it:

1. ``on_startup`` runs in arq's main task, whose cancellation ends the process. Until then arq polls, and with
   ``max_jobs=0`` claims nothing.
2. arq's own signal handlers cancel at once, so they are replaced; draining and closing come first, as arq's ``close``
   never calls ``on_shutdown`` where Redis is gone.
3. In burst mode arq leaves its main task by itself, once its one queue is empty; ``on_shutdown`` then stops what still
   runs.
"""

import asyncio
from contextlib import suppress
from typing import Any

from worker.process.lifecycle import Lifecycle
from worker.process.logs import log_as_arq_does
from worker.process.runtime import Runtime


class Host:
    """Runs an engine inside arq's process."""

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
        with suppress(Exception, SystemExit, KeyboardInterrupt):  # `shutdown` raises it where arq hears it
            await self._lifecycle.ended()
        main.cancel()

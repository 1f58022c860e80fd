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
import logging
import signal
from typing import Any

from worker.engine.engine import Engine
from worker.runtime import Runtime

logger = logging.getLogger("worker")

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Host:
    """Runs an engine inside arq's process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._main: asyncio.Task[Any] | None = None
        self._engine: Engine | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self.exit_code = 0

    async def startup(self, ctx: dict[Any, Any]) -> None:
        """arq's ``on_startup``."""
        _log_as_arq_does()
        self._main = asyncio.current_task()
        self._engine = await self._runtime.open(ctx)
        for number in _SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, signal.Signals(number))
        self._engine.start()
        self._watching = asyncio.create_task(self._watch())

    async def shutdown(self, _ctx: dict[Any, Any]) -> None:
        """arq's ``on_shutdown``.

        Raises:
            SystemExit: the engine had failed.
        """
        await self._close()
        if self.exit_code:
            raise SystemExit(self.exit_code)

    def _on_signal(self, number: signal.Signals) -> None:
        """The first signal drains, the second interrupts."""
        if self._stopping is not None:
            logger.info("%s again: interrupting what still runs", number.name)
            if self._engine is not None:
                self._engine.hurry()
            return
        logger.info("stopping on %s", number.name)
        self._stopping = asyncio.create_task(self._stop())

    async def _watch(self) -> None:
        assert self._engine is not None  # noqa: S101 - startup made it
        error = await self._engine.failed()
        logger.critical("%s: ending the process", error)
        self.exit_code = 1
        self._stopping = asyncio.create_task(self._stop())

    async def _stop(self) -> None:
        await self._close()
        if self._main is not None:
            self._main.cancel()

    async def _close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is None:
            return
        try:
            await engine.drain()
        finally:
            if self._watching is not None:
                self._watching.cancel()
            await self._runtime.close()


def _log_as_arq_does() -> None:
    """arq sets up its own logger alone; ours speak through its handlers, unless the project has set up logging."""
    arq = logging.getLogger("arq")
    if logging.getLogger().handlers:
        return
    for name in ("worker", "db"):
        ours = logging.getLogger(name)
        if not ours.handlers:
            ours.handlers, ours.level, ours.propagate = list(arq.handlers), arq.level, False

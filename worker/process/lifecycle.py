"""``Lifecycle``: one engine's life in its process, whether arq or ``python -m worker run`` gave the process.

1. `begin` takes over SIGINT and SIGTERM, opens what the worker needs, and starts the engine.
2. The first signal drains, a second one interrupts what still runs. One that comes during the opening ends the opening.
3. An engine that has failed is drained too, and the process is to end with code 1, or 70 where jobs hold all its slots.
4. `ended` returns once all is closed.
"""

import asyncio
import logging
import os
import signal
from typing import Any

from worker.engine.engine import Engine
from worker.engine.heartbeat import STUCK
from worker.process import memory
from worker.process.runtime import Runtime
from worker.process.stop_signals import STOP_SIGNALS

logger = logging.getLogger("worker")


class Lifecycle:
    """Begins, watches and ends one engine."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._opening: asyncio.Task[Any] | None = None
        self._engine: Engine | None = None
        self._stopping = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self.stopped_by: signal.Signals | None = None
        """The signal that ended it, if one did."""
        self.exit_code = 0
        """1 or 70 once the engine has failed: see `EngineError`."""

    async def begin(self, arq_context: dict[Any, Any], *, until_empty: bool = False) -> None:
        """Open, and start the engine.

        Args:
            arq_context: what tasks find in ``ctx``.
            until_empty: stop by itself once all queues are empty and nothing runs.

        Raises:
            StartupError: see `Runtime.open`.
            asyncio.CancelledError: a signal came first.
        """
        self._opening = asyncio.current_task()
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)
        engine = await self._runtime.open(arq_context)
        try:
            await asyncio.sleep(0)  # a cancellation that was put off, as in `to_the_end`, comes here
        except asyncio.CancelledError:
            await self._runtime.close()
            raise
        self._engine = engine
        memory.settle()
        self._engine.start()
        self._life = asyncio.create_task(self._live(self._engine, until_empty=until_empty))

    async def ended(self) -> None:
        """Wait until the engine has drained and all is closed."""
        if self._life is not None:
            await asyncio.shield(self._life)

    async def close(self) -> None:
        """Stop, unless that has happened, and wait for the end."""
        self._stopping.set()
        await self.ended()

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            logger.info("%s: interrupting what still runs", number.name)
            if self._engine is not None:
                self._engine.hurry()
            return
        logger.info("stopping on %s", number.name)
        self.stopped_by = number
        self._stopping.set()
        if self._engine is None and self._opening is not None:
            self._opening.cancel()

    async def _live(self, engine: Engine, *, until_empty: bool) -> None:
        watching = [asyncio.create_task(self._stop_when_failed(engine))]
        if until_empty:
            watching.append(asyncio.create_task(self._stop_when_empty(engine)))
        try:
            await self._stopping.wait()
            all_ended = await engine.drain()
        finally:
            for task in watching:
                task.cancel()
            await self._runtime.close()
        if not all_ended:
            os._exit(STUCK)  # a thread would keep the interpreter from ending for as long as it pleases

    async def _stop_when_failed(self, engine: Engine) -> None:
        error = await engine.failed()
        logger.critical("%s: ending the process", error)
        self.exit_code = error.exit_code
        self._stopping.set()

    async def _stop_when_empty(self, engine: Engine) -> None:
        await engine.idle()
        self._stopping.set()

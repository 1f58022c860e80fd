"""``Lifecycle``: one engine's life in its process, whether arq or ``python -m worker run`` gave the process.

1. `begin` takes over SIGINT and SIGTERM, opens what the worker needs, and starts the engine.
2. The first signal drains, a second one interrupts what still runs. One that comes during the opening ends the opening:
   the engine is not started, so nothing is claimed.
3. One task opens, waits and closes. So what a lifespan or a hook binds to its task or context is left where it was
   entered.
4. An engine that has failed is drained too, and the process is to end with code 1, or 70 where jobs hold all
   its slots.
5. `ended` returns once all is closed.
"""

import asyncio
import logging
import os
import signal
from contextlib import suppress
from typing import Any

from worker.engine.engine import Engine
from worker.engine.heartbeat import STUCK
from worker.process.gc_tuning import tune_gc
from worker.process.runtime import Runtime
from worker.process.stop_signals import exit_code_after, hear, leave_soon

logger = logging.getLogger("worker")


class Lifecycle:
    """Begins, watches and ends one engine."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._engine: Engine | None = None
        self._works = asyncio.Event()
        self._stopping = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self.stopped_by: signal.Signals | None = None
        """The signal that ended it, if one did."""
        self.exit_code = 0
        """1 once the engine, or what it needs, has failed; or 70: see `EngineError`."""
        self._exit: SystemExit | KeyboardInterrupt | None = None
        """What LIFESPAN or a hook has ended the process with."""

    async def begin(self, arq_context: dict[Any, Any], *, until_empty: bool = False) -> None:
        """Open, and start the engine.

        Args:
            arq_context: what tasks find in ``ctx``.
            until_empty: stop by itself once all queues are empty and nothing runs.

        Raises:
            StartupError: see `Runtime.open`.
            asyncio.CancelledError: a signal came first.
            SystemExit, KeyboardInterrupt: LIFESPAN or a hook ends the process.
        """
        loop = asyncio.get_running_loop()
        hear(lambda number: self._hear(number, loop, until_empty=until_empty))
        self._life = loop.create_task(self._live(arq_context, until_empty=until_empty))
        works = loop.create_task(self._works.wait())
        await asyncio.wait({self._life, works}, return_when=asyncio.FIRST_COMPLETED)
        works.cancel()
        if not self._works.is_set():
            opening, self._life = self._life, None
            await opening
            raise self._exit or asyncio.CancelledError

    async def ended(self) -> None:
        """Wait until the engine has drained and all is closed.

        A cancellation does not end the wait: a task's code may cancel whatever it finds, and a process that goes on to
        its end meanwhile would leave the outcomes of jobs unwritten.

        Raises:
            SystemExit, KeyboardInterrupt: LIFESPAN or a hook ends the process.
        """
        if self._life is not None:
            await _ended(self._life)
            self._life.result()
            if self._exit is not None:
                raise self._exit

    async def close(self) -> None:
        """Stop, unless that has happened, and wait for the end."""
        self._stopping.set()
        await self.ended()

    def _hear(self, number: signal.Signals, loop: asyncio.AbstractEventLoop, *, until_empty: bool) -> None:
        """Take note at once, whatever the loop does."""
        if self._engine is None:
            leave_soon(exit_code_after(number, until_empty=until_empty))
        self.stopped_by = self.stopped_by or number
        loop.call_soon_threadsafe(self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            logger.info("%s: interrupting what still runs", number.name)
            if self._engine is not None:
                self._engine.hurry()
            return
        logger.info("stopping on %s", number.name)
        self._stopping.set()
        if self._engine is None and self._life is not None:
            self._life.cancel()

    async def _live(self, arq_context: dict[Any, Any], *, until_empty: bool) -> None:
        try:
            await self._open_work_close(arq_context, until_empty=until_empty)
        except (SystemExit, KeyboardInterrupt) as error:
            self._exit = error  # for whoever waits: out of this task, the loop would take it for a job's

    async def _open_work_close(self, arq_context: dict[Any, Any], *, until_empty: bool) -> None:
        try:
            engine = await self._runtime.open(arq_context)
        except Exception:
            if self.stopped_by is None:
                raise
            logger.exception("what was being opened ended with an error, after %s", self.stopped_by.name)
            return
        all_ended = True
        try:
            self._engine = engine
            if self.stopped_by is None and not self._stopping.is_set():  # the opening may swallow its cancellation
                all_ended = await self._work(engine, until_empty=until_empty)
        finally:
            await self._close(all_ended=all_ended)

    async def _close(self, *, all_ended: bool) -> None:
        try:
            await self._runtime.close()
        except BaseException:
            if all_ended:
                raise
            logger.exception("what was open ended with an error")
        if not all_ended:
            os._exit(STUCK)  # a thread would keep the interpreter from ending for as long as it pleases

    async def _work(self, engine: Engine, *, until_empty: bool) -> bool:
        """Run the engine until it is to stop, and drain it; whether all jobs have ended."""
        tune_gc()
        engine.start()
        self._works.set()
        watching = [asyncio.create_task(self._stop_when_failed(engine))]
        if until_empty:
            watching.append(asyncio.create_task(self._stop_when_empty(engine)))
        try:
            await self._stopping.wait()
        except asyncio.CancelledError:
            # We cancel nothing here, but a task group that LIFESPAN has open does, when one of its tasks fails.
            logger.critical("LIFESPAN, a hook or a task's code has cancelled the worker: ending the process")
            self.exit_code = 1
        finally:
            draining = asyncio.create_task(engine.drain())
            # Who has cancelled this task goes on doing so, and is to be heard where it was entered: in closing.
            await _ended(draining)
            for task in watching:
                task.cancel()
        return draining.result()

    async def _stop_when_failed(self, engine: Engine) -> None:
        error = await engine.failed()
        logger.critical("%s: ending the process", error)
        self.exit_code = error.exit_code
        self._stopping.set()

    async def _stop_when_empty(self, engine: Engine) -> None:
        await engine.idle()
        self._stopping.set()


async def _ended(task: "asyncio.Task[Any]") -> None:
    """Wait until a task has ended, however, and whoever cancels the waiting."""
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})

"""``Lifecycle``: starts, watches and ends the engine of a process, under arq or ``python -m worker run``.

1. `begin` takes over SIGINT and SIGTERM, opens the database, the broker and the resources, and starts the engine.
2. The first signal drains the engine, a second signal interrupts the running jobs. A signal during the opening ends the
   opening: the engine does not start, so nothing is claimed.
3. One asyncio task opens, waits and closes. So a lifespan or hook that binds something to its task or context leaves it
   in the task that entered it.
4. An engine that has failed is drained too. The process then ends with code 1, or with code 70 if jobs hold all slots.
5. `ended` returns when everything is closed.
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
from worker.process.stop_signals import call_on_stop_signal, exit_after_delay, exit_code_after

logger = logging.getLogger("worker")


class Lifecycle:
    """Begins, watches and ends one engine."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._engine: Engine | None = None
        self._started = asyncio.Event()
        self._stopping = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self.stopped_by: signal.Signals | None = None
        """The first stop signal, if one came."""
        self.exit_code = 0
        """1 if the engine or LIFESPAN has failed; 70 if jobs hold all slots: see `EngineError`."""
        self._exit: SystemExit | KeyboardInterrupt | None = None
        """The exception by which LIFESPAN or a hook ended the process."""

    async def begin(
        self, arq_context: dict[Any, Any], *, until_empty: bool = False, handle_signals: bool = True
    ) -> None:
        """Open everything and start the engine.

        Args:
            arq_context: the ``ctx`` of tasks.
            until_empty: stop when all queues are empty and no job runs.
            handle_signals: whether to take over SIGINT and SIGTERM. Otherwise the program calls `close`.

        Raises:
            StartupError: see `Runtime.open`.
            asyncio.CancelledError: a signal came before the engine started.
            SystemExit, KeyboardInterrupt: LIFESPAN or a hook ends the process.
        """
        loop = asyncio.get_running_loop()
        if handle_signals:
            call_on_stop_signal(lambda number: self._handle_signal(number, loop, until_empty=until_empty))
        self._life = loop.create_task(self._live(arq_context, until_empty=until_empty))
        started = loop.create_task(self._started.wait())
        await asyncio.wait({self._life, started}, return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if not self._started.is_set():
            opening, self._life = self._life, None
            await opening
            raise self._exit or asyncio.CancelledError

    async def ended(self) -> None:
        """Wait until the engine has drained and everything is closed.

        A cancellation does not end the wait. A task's code may cancel any asyncio task, and a process that ended too
        early would leave outcomes of jobs unwritten.

        Raises:
            SystemExit, KeyboardInterrupt: LIFESPAN or a hook ends the process.
        """
        if self._life is not None:
            await _ended(self._life)
            self._life.result()
            if self._exit is not None:
                raise self._exit

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many attempts were done, failed and retried."""
        counts = {} if self._engine is None else self._engine.counts
        return counts.get("done", 0), counts.get("failed", 0), counts.get("retried", 0)

    async def close(self) -> None:
        """Stop the engine, if it runs, and wait for the end."""
        self._stopping.set()
        await self.ended()

    def _handle_signal(self, number: signal.Signals, loop: asyncio.AbstractEventLoop, *, until_empty: bool) -> None:
        """Record the signal at once, even if the loop is blocked, and let the loop stop the engine."""
        if self._engine is None:
            exit_after_delay(exit_code_after(number, until_empty=until_empty))
        self.stopped_by = self.stopped_by or number
        loop.call_soon_threadsafe(self._stop_or_hurry, number)

    def _stop_or_hurry(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            logger.info("%s: interrupting the running jobs", number.name)
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
            self._exit = error  # raised by `begin` or `ended`: raised here, the loop would take it for a job's

    async def _open_work_close(self, arq_context: dict[Any, Any], *, until_empty: bool) -> None:
        try:
            engine = await self._runtime.open(arq_context)
        except Exception:
            if self.stopped_by is None:
                raise
            logger.exception("opening the worker failed after %s", self.stopped_by.name)
            return
        all_ended = True
        try:
            self._engine = engine
            if self.stopped_by is None and not self._stopping.is_set():  # a lifespan may swallow its cancellation
                all_ended = await self._work(engine, until_empty=until_empty)
        finally:
            await self._close(all_ended=all_ended)

    async def _close(self, *, all_ended: bool) -> None:
        try:
            await self._runtime.close()
        except BaseException:
            if all_ended:
                raise
            logger.exception("closing the worker failed")
        if not all_ended:
            os._exit(STUCK)  # a job's thread that does not return would keep the interpreter from ending

    async def _work(self, engine: Engine, *, until_empty: bool) -> bool:
        """Run the engine until it is to stop, and drain it; True if all jobs have ended."""
        tune_gc()
        engine.start()
        self._started.set()
        watching = [asyncio.create_task(watch(engine)) for watch in (self._stop_when_failed, self._stop_when_told)]
        if until_empty:
            watching.append(asyncio.create_task(self._stop_when_empty(engine)))
        try:
            await self._stopping.wait()
        except asyncio.CancelledError:
            # Tandem never cancels this task. A task group of LIFESPAN does, when one of the group's tasks fails.
            logger.critical("LIFESPAN, a hook or a task's code has cancelled the worker: ending the process")
            self.exit_code = 1
        finally:
            draining = asyncio.create_task(engine.drain())
            # A task group that has cancelled this task may do so again. It gets its turn when LIFESPAN is left.
            await _ended(draining)
            for task in watching:
                task.cancel()
        return draining.result()

    async def _stop_when_failed(self, engine: Engine) -> None:
        error = await engine.failed()
        logger.critical("%s: ending the process", error)
        self.exit_code = error.exit_code
        self._stopping.set()

    async def _stop_when_told(self, engine: Engine) -> None:
        """Stop as on SIGTERM when a person says so from afar."""
        await engine.told_to_stop()
        self.stopped_by = self.stopped_by or signal.SIGTERM
        self._stopping.set()

    async def _stop_when_empty(self, engine: Engine) -> None:
        await engine.idle()
        self._stopping.set()


async def _ended(task: "asyncio.Task[Any]") -> None:
    """Wait until a task has ended, even if the wait is cancelled."""
    while not task.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({task})

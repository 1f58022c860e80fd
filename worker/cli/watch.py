"""``Watch``: restarts a worker when the project's code changes, for development.

After a change the worker drains, and a new process starts, as only a new process imports everything again. A worker
that has ended by itself, because of a mistake in the code for example, is started again after the next change.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path

from watchfiles import PythonFilter, awatch

from worker.cli.child_process import ChildProcess
from worker.process.logs import log_without_arq
from worker.process.stop_signals import STOP_SIGNALS

logger = logging.getLogger("worker")


def watch(folder: Path, arguments: Sequence[str]) -> int:
    """Run ``python -m worker <arguments>`` until a signal comes; the exit code.

    Args:
        folder: the folder whose Python files are watched, with all folders below.
    """
    log_without_arq()
    return asyncio.run(Watch(folder, arguments).run())


class Watch:
    """Restarts one process after each change."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        self._folder = folder
        self._arguments = arguments
        self._child: ChildProcess | None = None
        self._restart = asyncio.Event()
        self._stopped_by: signal.Signals | None = None
        self._cannot_watch = False

    async def run(self) -> int:
        """Run the process again and again until a signal comes; the last exit code."""
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._stop, number)
        watching = asyncio.create_task(self._watch_files())
        code = 0
        while self._stopped_by is None:
            code = await self._run_once()
        watching.cancel()
        await asyncio.wait({watching})
        return 1 if self._cannot_watch else code

    def _stop(self, number: signal.Signals) -> None:
        """Pass the signal on to the worker; the first signal also ends `run`."""
        self._stopped_by = number
        self._restart.set()
        if self._child is not None:
            self._child.send(number)

    async def _run_once(self) -> int:
        """Run the process until it is to start again; the exit code."""
        self._restart.clear()
        child = self._child = await ChildProcess.start(self._arguments, os.environ)
        if self._stopped_by is not None:  # the signal came during the start
            child.send(self._stopped_by)
        ended = asyncio.create_task(child.ended())
        restart = asyncio.create_task(self._restart.wait())
        await asyncio.wait({ended, restart}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done() and self._stopped_by is None:
            child.send(signal.SIGTERM)
        code = await ended
        self._child = None
        if not restart.done():
            logger.info("the worker ended with exit code %d: waiting for a change in %s", code, self._folder)
        await restart
        return code

    async def _watch_files(self) -> None:
        try:
            async for changes in awatch(self._folder, watch_filter=PythonFilter()):
                logger.info("%s changed: restarting the worker", ", ".join(sorted({path for _, path in changes})))
                self._restart.set()
        except (OSError, RuntimeError) as error:
            logger.critical("cannot watch %s: %s", self._folder, error)
            self._cannot_watch = True
            self._stop(signal.SIGTERM)

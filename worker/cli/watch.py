"""``Watch``: a worker that is started again when the project's code changes, for those who write it.

A change drains the worker and then starts a new process: nothing less imports everything anew. A worker that has ended
by itself, as one does over a mistake in the code, is started again after the next change.
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
    """Run ``python -m worker <arguments>`` until told to stop; the exit code.

    Args:
        folder: where Python files count, and in all folders below.
    """
    log_without_arq()
    return asyncio.run(Watch(folder, arguments).run())


class Watch:
    """Keeps one process up to date."""

    def __init__(self, folder: Path, arguments: Sequence[str]) -> None:
        self._folder = folder
        self._arguments = arguments
        self._child: ChildProcess | None = None
        self._news = asyncio.Event()
        self._stopped_by: signal.Signals | None = None
        self._cannot_watch = False

    async def run(self) -> int:
        """Until told to stop; the exit code."""
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._stop, number)
        watching = asyncio.create_task(self._take_note_of_changes())
        code = 0
        while self._stopped_by is None:
            code = await self._live()
        watching.cancel()
        await asyncio.wait({watching})
        return 1 if self._cannot_watch else code

    def _stop(self, number: signal.Signals) -> None:
        """Pass the signal on; the first one ends this too."""
        self._stopped_by = number
        self._news.set()
        if self._child is not None:
            self._child.send(number)

    async def _live(self) -> int:
        """From a start to the time for the next one; the exit code."""
        self._news.clear()
        child = self._child = await ChildProcess.start(self._arguments, os.environ)
        if self._stopped_by is not None:  # it came while the child was being started
            child.send(self._stopped_by)
        ended = asyncio.create_task(child.ended())
        news = asyncio.create_task(self._news.wait())
        await asyncio.wait({ended, news}, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done() and self._stopped_by is None:
            child.send(signal.SIGTERM)
        code = await ended
        self._child = None
        if not news.done():
            logger.info("ended with exit code %d: waiting for a change in %s", code, self._folder)
        await news
        return code

    async def _take_note_of_changes(self) -> None:
        try:
            async for changes in awatch(self._folder, watch_filter=PythonFilter()):
                logger.info("%s: starting again", ", ".join(sorted({path for _, path in changes})))
                self._news.set()
        except (OSError, RuntimeError) as error:
            logger.critical("%s cannot be watched: %s", self._folder, error)
            self._cannot_watch = True
            self._stop(signal.SIGTERM)

"""``Supervisor``: several worker processes, kept running.

1. The first one has to work before the others start: what is wrong with all of them is said once.
2. One that dies is started again, later each time; one that lived for a while is started again soon.
3. A signal is passed on to all of them, each time that it comes. The exit code is the worst of theirs.
4. They end with their supervisor, even if it is killed: see `worker.child`.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Sequence

from worker.child import Child
from worker.config import Config
from worker.display import Display, display
from worker.lifecycle import STOP_SIGNALS
from worker.progress import Progress

logger = logging.getLogger("worker")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds
_LONG_LIFE = 60.0  # seconds
_MISTAKE = 2  # the exit code for what will be no better next time
_TOLD_TO_STOP = {128 + number for number in STOP_SIGNALS}  # the exit codes of who could not handle the signal yet


class Restarts:
    """How long to wait before a worker is started again."""

    def __init__(self) -> None:
        self._pause = _FIRST_PAUSE

    def pause_after(self, life: float) -> float:
        """Seconds to wait, after one that lived for `life` seconds."""
        if life >= _LONG_LIFE:
            self._pause = _FIRST_PAUSE
        pause, self._pause = self._pause, min(self._pause * 2, _LONGEST_PAUSE)
        return pause


def supervise(config: Config, processes: int, *, until_empty: bool = False) -> int:
    """Run that many workers until told to stop; the exit code.

    Args:
        until_empty: each ends by itself once the queues are empty.
    """
    worker_ids = [f"{config.id}-{number}" for number in range(1, processes + 1)]
    with display() as shown:
        return asyncio.run(_supervise(config, worker_ids, shown, until_empty=until_empty))


async def _supervise(config: Config, worker_ids: Sequence[str], shown: Display, *, until_empty: bool) -> int:
    progress = Progress(config.require_redis_url(), config.queue_names, worker_ids, shown)
    showing = asyncio.create_task(progress.run())
    try:
        return await Supervisor(worker_ids, progress, shown, until_empty=until_empty).run()
    finally:
        showing.cancel()
        await progress.close()


class Supervisor:
    """Keeps the workers of these ids running."""

    def __init__(self, worker_ids: Sequence[str], progress: Progress, shown: Display, *, until_empty: bool) -> None:
        self._ids = worker_ids
        self._progress = progress
        self._display = shown
        self._until_empty = until_empty
        self._children: dict[str, Child] = {}
        self._first_works = asyncio.Event()
        self._stopping = asyncio.Event()
        self._signal = signal.SIGTERM

    async def run(self) -> int:
        """Until all have ended; the exit code."""
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._pass_on, number)
        first, *others = self._ids
        return max(await asyncio.gather(self._keep(first), *(self._keep_after_first(one) for one in others)))

    def _pass_on(self, number: signal.Signals) -> None:
        logger.info("passing %s on to %d workers", number.name, len(self._children))
        self._signal = number
        self._stopping.set()
        for child in self._children.values():
            child.send(number)

    async def _keep_after_first(self, worker_id: str) -> int:
        await _either(self._first_works, self._stopping)
        return await self._keep(worker_id)

    async def _keep(self, worker_id: str) -> int:
        """Run a worker, again and again; its last exit code, once there is no need any more."""
        restarts = Restarts()
        while not self._stopping.is_set():
            started_at = time.monotonic()
            code = await self._live(worker_id)
            if self._is_last(code):
                return code
            pause = restarts.pause_after(time.monotonic() - started_at)
            logger.warning("%s ended with exit code %d: starting it again in %g s", worker_id, code, pause)
            await _either(self._stopping, timeout=pause)
        return self._code_of_interrupted()

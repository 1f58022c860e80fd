"""``Supervisor``: starts several worker processes and keeps them running.

1. The first worker must work before the others start, so that an error that concerns all of them is printed once.
2. A worker that ends is started again, after a longer delay each time. After a minute of life the delay is short again.
3. Each signal is passed on to all workers. The exit code is the worst of theirs.
4. The workers end with their supervisor, even if it is killed: see `worker.cli.child_process`.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence

from worker.aio.backoff import Backoff
from worker.aio.cancel_tasks import cancel_tasks
from worker.cli.child_process import ChildProcess
from worker.cli.progress import Progress
from worker.cli.progress_output import Display, display
from worker.config import Config
from worker.process.stop_signals import STOP_SIGNALS, exit_code_after

logger = logging.getLogger("worker")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds
_LONG_LIFE = 60.0  # seconds after which the delay begins again at the shortest
_FAILED = 1  # the exit code of a failure that another start may avoid
_MISTAKE = 2  # the exit code of a mistake that every start repeats


def supervise(config: Config, processes: int, *, until_empty: bool = False) -> int:
    """Run several workers with the settings of the environment until a signal comes; the exit code.

    Args:
        until_empty: the workers end by themselves when all queues are empty and no job runs.
    """
    worker_ids = [f"{config.id}-{number}" for number in range(1, processes + 1)]
    with display(config.log) as shown:
        return asyncio.run(_supervise(config, worker_ids, shown, until_empty=until_empty))


async def _supervise(config: Config, worker_ids: Sequence[str], shown: Display, *, until_empty: bool) -> int:
    progress = Progress(config.require_redis_url(), config.queue_names, worker_ids, shown)
    showing = asyncio.create_task(progress.run())
    shown.open()
    try:
        return await Supervisor(
            worker_ids, progress, shown.output, until_empty=until_empty, metrics_port=config.metrics_port
        ).run()
    finally:
        await cancel_tasks({showing})
        await progress.close()
        shown.close()


class Supervisor:
    """Keeps the workers of these ids running.

    Args:
        output: the descriptor that the workers print to; None: the supervisor's own output.
        metrics_port: the port of the first worker's metrics; each next worker has the next one. None: there are none.
    """

    def __init__(
        self,
        worker_ids: Sequence[str],
        progress: Progress,
        output: int | None,
        *,
        until_empty: bool,
        metrics_port: int | None = None,
    ) -> None:
        self._ids = worker_ids
        self._progress = progress
        self._output = output
        self._until_empty = until_empty
        self._metrics_port = metrics_port
        self._children: dict[str, ChildProcess] = {}
        self._first_works = asyncio.Event()
        self._stopping = asyncio.Event()
        self._stopped_by: signal.Signals | None = None

    async def run(self) -> int:
        """Run the workers until all have ended; the exit code."""
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self._pass_on, number)
        first, *others = self._ids
        return max(await asyncio.gather(self._keep(first), *map(self._keep_after_first, others)))

    def _pass_on(self, number: signal.Signals) -> None:
        logger.info("%s: passing the signal on to the workers", number.name)
        self._stopped_by = number
        self._stopping.set()
        for child in self._children.values():
            child.send(number)

    async def _keep_after_first(self, worker_id: str) -> int:
        await _first_of(self._first_works, self._stopping)
        return await self._keep(worker_id)

    async def _keep(self, worker_id: str) -> int:
        """Run a worker again and again; its last exit code."""
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        while not self._stopping.is_set():
            begin = time.monotonic()
            code = await self._run_once(worker_id)
            if self._is_final(code):
                return code
            if time.monotonic() - begin >= _LONG_LIFE:
                backoff.reset()
            pause = backoff.next()
            logger.warning("%s ended with exit code %d; it is started again in %g s", worker_id, code, pause)
            await _first_of(self._stopping, within=pause)
        return exit_code_after(self._stopped_by, until_empty=self._until_empty)

    async def _run_once(self, worker_id: str) -> int:
        """Run a worker once; its exit code."""
        child = self._children[worker_id] = await self._start(worker_id)
        if self._stopped_by is not None:  # the signal came during the start
            child.send(self._stopped_by)
        waiting = asyncio.create_task(self._wait_until_started(child))
        code = await child.ended()
        waiting.cancel()
        del self._children[worker_id]
        await self._progress.remove_ended(worker_id)
        return code

    async def _start(self, worker_id: str) -> ChildProcess:
        until_empty = ["--burst"] if self._until_empty else []
        return await ChildProcess.start(
            ["run", "--under=supervisor", *until_empty],
            {**os.environ, "WORKER_ID": worker_id, "PYTHONUNBUFFERED": "1", **self._metrics_setting(worker_id)},
            stdout=self._output if sys.stdout.isatty() else None,
            stderr=self._output,
        )

    def _metrics_setting(self, worker_id: str) -> dict[str, str]:
        if self._metrics_port is None:
            return {}
        return {"WORKER_METRICS_PORT": str(self._metrics_port + self._ids.index(worker_id))}

    async def _wait_until_started(self, child: ChildProcess) -> None:
        if await child.started():
            self._first_works.set()

    def _is_final(self, code: int) -> bool:
        """Whether a worker that ended with this code is not started again."""
        is_over = self._until_empty and code in (0, _FAILED)
        if is_over and code == 0:
            self._first_works.set()
        elif (is_over or code == _MISTAKE) and not self._first_works.is_set():
            self._stopping.set()
        return is_over or self._stopping.is_set()


async def _first_of(*events: asyncio.Event, within: float | None = None) -> None:
    """Wait until one of the events is set, at most `within` seconds."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waiting, timeout=within, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()

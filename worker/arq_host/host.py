"""``Host``: an engine inside arq's process, for ``arq worker.Settings``.

What arq's sources (0.28, ``worker.py``) require:

1. ``on_startup`` runs in arq's main task. Cancelling that task ends the process. Until then arq polls Redis, and with
   ``max_jobs=0`` claims nothing.
2. arq's own signal handlers cancel at once, so they are replaced, unless the program that embeds arq's worker handles
   signals itself. Draining and closing happen before the cancellation, as arq's ``close`` never calls ``on_shutdown``
   if Redis is away.
3. In burst mode arq leaves its main task by itself when its one queue is empty. So ``on_startup`` returns only when the
   engine has found all queues empty and has ended. arq then leaves because it may start no jobs.
4. arq's worker counts its jobs in attributes, which `run_check` and embedding programs read.
5. Settings that change how arq's worker runs jobs are attributes of it, too. A program may give them to the worker
   itself, or to `run_check`.
"""

import asyncio
from contextlib import suppress
from typing import Any

from arq.worker import Worker

from worker.aio.cancel_tasks import cancel_tasks
from worker.arq_host.burst_end import BurstEnd, given_limit
from worker.arq_host.client import ArqClient
from worker.arq_host.current_worker import current_worker
from worker.broker.keys import Keys
from worker.engine.arq_options import ArqOptions
from worker.process.lifecycle import Lifecycle
from worker.process.logs import log_under_arq
from worker.process.runtime import Runtime

_INTERVAL = 0.5  # seconds between two updates of arq's counts, as arq polls


class Host:
    """Run an engine inside arq's process."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._lifecycle = Lifecycle(runtime)
        self._leaving: asyncio.Task[None] | None = None

    async def startup(self, ctx: dict[Any, Any]) -> None:
        """arq's ``on_startup``.

        Raises:
            asyncio.CancelledError: in burst mode, the engine has ended before the queues were empty.
        """
        log_under_arq(self._runtime.log_format)
        main, worker = asyncio.current_task(), current_worker()
        assert main is not None  # noqa: S101 - coroutines run in tasks
        is_burst = worker is not None and worker.burst
        if worker is not None:
            options = _options_of(worker)
            self._runtime.use_arq_options(options)
            if isinstance(worker.pool, ArqClient):
                worker.pool.health_check_key = options.health_check_key
        if is_burst:
            self._runtime.fail_unknown_jobs_at_once()
        self._lifecycle = Lifecycle(self._runtime)  # a worker may run more than once
        handle_signals = worker is None or worker._handle_signals  # noqa: SLF001 - arq has no other name for it
        await self._lifecycle.begin(ctx, until_empty=is_burst, handle_signals=handle_signals)
        counting = asyncio.create_task(_count(self._lifecycle, worker))
        if worker is not None and worker.burst:
            await self._until_ended(worker, counting)
        else:
            self._leaving = asyncio.create_task(self._leave(main, counting))

    async def shutdown(self, _ctx: dict[Any, Any]) -> None:
        """arq's ``on_shutdown``.

        Raises:
            SystemExit: the engine had failed.
        """
        await self._lifecycle.close()
        if self._lifecycle.exit_code:
            raise SystemExit(self._lifecycle.exit_code)

    async def _until_ended(self, worker: Worker, counting: asyncio.Task[None]) -> None:
        # In a task of its own: a cancellation ends this wait, and `shutdown` then ends the engine.
        await asyncio.wait({asyncio.create_task(self._ended(counting))})
        if self._lifecycle.stopped_by is not None or self._lifecycle.exit_code:
            raise asyncio.CancelledError
        worker.max_burst_jobs = BurstEnd.of(worker)

    async def _leave(self, main: asyncio.Task[Any], counting: asyncio.Task[None]) -> None:
        await self._ended(counting)
        main.cancel()

    async def _ended(self, counting: asyncio.Task[None]) -> None:
        with suppress(Exception, SystemExit, KeyboardInterrupt):  # `shutdown` raises it to arq
            await self._lifecycle.ended()
        await cancel_tasks([counting])


def _options_of(worker: Worker) -> ArqOptions:
    limit, key = given_limit(worker), worker.health_check_key
    return ArqOptions(
        retry_jobs=worker.retry_jobs,
        log_results=worker.log_results,
        max_burst_jobs=limit if worker.burst and limit >= 0 else None,
        health_check_key=None if Keys.is_health(key) else key,
    )


async def _count(lifecycle: Lifecycle, worker: Worker | None) -> None:
    """Keep arq's counts, which go on from earlier runs of the same worker, until this is cancelled."""
    if worker is None:
        return
    done, failed, retried = worker.jobs_complete, worker.jobs_failed, worker.jobs_retried

    def update() -> None:
        now = lifecycle.counts
        worker.jobs_complete, worker.jobs_failed, worker.jobs_retried = done + now[0], failed + now[1], retried + now[2]

    try:
        while True:
            update()
            await asyncio.sleep(_INTERVAL)
    finally:
        update()

"""``AfterJob``: arq's hook ``after_job_end``."""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from worker.context import from_milliseconds
from worker.engine.arq_time import in_arqs_zone
from worker.engine.execution import Execution
from worker.engine.task_caller import Hook

logger = logging.getLogger("worker")


class AfterJob:
    """arq's ``after_job_end``, called after each job that has run, when its outcome is recorded in Redis.

    The job's slot is free only after that, so hooks do not pile up. An error that the hook raises is logged.
    """

    def __init__(self, hook: Hook, arq_context: Mapping[Any, Any]) -> None:
        self._hook = hook
        self._arq_context = arq_context
        self._expected: set[asyncio.Future[None]] = set()

    def expect(self, execution: Execution) -> None:
        """Let `call` know when the outcome is recorded. Call it before the outcome is handed on."""
        execution.recorded = asyncio.get_running_loop().create_future()
        self._expected.add(execution.recorded)

    async def call(self, execution: Execution) -> None:
        """Call the hook, once the outcome is recorded."""
        assert execution.recorded is not None  # noqa: S101 - see `expect`
        await asyncio.wait({execution.recorded})
        self._expected.discard(execution.recorded)
        if execution.recorded.cancelled():
            logger.error("after_job_end was not called for %s: its outcome is not recorded", execution.job_id)
            return
        try:
            await self._hook(self._context(execution))
        except (Exception, SystemExit, KeyboardInterrupt):
            logger.exception("after_job_end failed; the outcome of its job stands")

    def give_up(self) -> None:
        """Wait no longer for outcomes that Redis has not taken: the worker ends."""
        for recorded in self._expected:
            recorded.cancel()

    def _context(self, execution: Execution) -> dict[Any, Any]:
        if execution.arq_context is not None:
            return execution.arq_context
        return {
            **self._arq_context,
            "job_id": execution.job_id,
            "job_try": execution.claim.tries + 1,
            "enqueue_time": in_arqs_zone(from_milliseconds(execution.message.enqueued_at)),
            "score": execution.due,
        }

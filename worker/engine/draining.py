"""``Draining``: let running jobs finish for a grace time, then interrupt the rest."""

import asyncio
import contextlib
import logging

from db.text.plural import plural
from worker.engine.execution import Phase
from worker.engine.executions import Executions
from worker.engine.outcome import OutcomeKind

logger = logging.getLogger("worker")

_ROLLBACK_TIMEOUT = 10.0  # seconds that interrupted jobs have to roll back; later ones run again after their leases


class Draining:
    """Ends running jobs.

    Args:
        grace: seconds that running jobs have to finish.
    """

    def __init__(self, executions: Executions, grace: float) -> None:
        self._executions = executions
        self._grace = grace
        self._hurry = asyncio.Event()
        self.has_begun = False

    def hurry(self) -> None:
        """Stop waiting for running jobs."""
        self._hurry.set()

    def begin(self) -> None:
        """Mark the worker as draining, and log that."""
        running = plural(self._executions.running, "job is running; it has", "jobs are running; they have")
        logger.info("draining: %s %g s", running, self._grace)
        self.has_begun = True

    async def finish(self) -> None:
        """Wait until running jobs have finished, at most for the grace time, or until `hurry` is called."""
        hurried = asyncio.create_task(self._hurry.wait())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._grace):
                while (tasks := self._executions.tasks) and not hurried.done():
                    await asyncio.wait({*tasks, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()

    async def interrupt(self) -> None:
        """Interrupt the jobs that still run, and let them roll back."""
        for execution in self._executions:
            execution.cancel(OutcomeKind.INTERRUPTED)
        if tasks := self._executions.tasks:
            await asyncio.wait(tasks, timeout=_ROLLBACK_TIMEOUT)
        for execution in self._executions:
            if execution.phase is Phase.RUNNING:
                logger.error("%s does not end: another worker runs it again once its lease has ended", execution.job_id)

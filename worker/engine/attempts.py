"""``AttemptCaller``: a job's lease is kept from the start of each attempt, not of the first one.

A job that the database asks to run again, or that waits for the database to come back, may take much longer than one
attempt; its body, each time that it is called, may not.
"""

from collections.abc import Coroutine, Mapping
from contextvars import ContextVar
from typing import Any

from db.scope import Scope
from worker.context import JobContext
from worker.engine.calling import Caller
from worker.engine.held import HeldJob
from worker.task import Task

held_here: ContextVar[HeldJob] = ContextVar("worker.held_job")
"""The job that this asyncio task runs."""


def keep_lease() -> None:
    """Keep the lease of the job that this asyncio task runs for as long again as one attempt may take."""
    held_here.get().attempt_begins()


class AttemptCaller(Caller):
    """Calls tasks, and takes note of when."""

    def call(
        self, task: Task[..., Any], payload: Mapping[str, Any], job: JobContext, scope: Scope
    ) -> Coroutine[Any, Any, Any]:
        keep_lease()
        return super().call(task, payload, job, scope)

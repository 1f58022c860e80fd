"""``Executor``: one job, from claim to outcome.

1. Its arguments are validated before any session is opened.
2. Each job runs in a task of its own that is cancelled at most once: a cancellation ends the body, and never a COMMIT.
3. The deadline is around the body alone.
4. The result is serialised before the COMMIT: a job that cannot say what it did has done nothing.
"""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from db.scope import Scope, scope
from worker.context import JobContext, enter_job, from_milliseconds
from worker.engine.calling import Caller
from worker.engine.delivery import Delivery
from worker.engine.outcome import Kind, Outcome, Rerun, count_as_try, judge
from worker.engine.patience import Patience
from worker.errors import UnknownTaskError
from worker.message import dump
from worker.task import Task

logger = logging.getLogger("worker")


@dataclass(slots=True)
class _Run:
    """A delivery with its task and validated arguments."""

    delivery: Delivery
    task: Task[..., Any]
    payload: Mapping[str, Any]
    context: JobContext
    timeout: float
    max_tries: int


class Executor:
    """Runs jobs.

    Args:
        tasks: by name.
        caller: calls their functions.
        timeout: seconds that one attempt may take, for tasks that do not say.
        max_tries: attempts before a job fails for good, likewise.
        resources: what the registry's lifespan yielded, by name.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task[..., Any]],
        caller: Caller,
        *,
        timeout: float,
        max_tries: int,
        resources: Mapping[str, Any] | None = None,
    ) -> None:
        self._tasks = tasks
        self._caller = caller
        self._timeout = timeout
        self._max_tries = max_tries
        self._resources = resources or {}
        self._known_to_commit_early: set[str] = set()

    async def execute(self, delivery: Delivery) -> Outcome:
        """Run one job and say what became of it. Raises nothing for the job's sake.

        Call it in an asyncio task of its own, and cancel that task once at most (`HeldJob.cancel` sees to it): what
        the cancellation starts is not to be interrupted by another one. Elsewhere, wrap it in `in_private_task`.
        """
        message = delivery.message
        task = self._tasks.get(message.task)
        if task is None:
            return Outcome.failed(UnknownTaskError(f"no task {message.task!r} in this worker's registry"))
        try:
            payload = task.signature.restore(message.args, message.kwargs)
        except Exception as error:  # noqa: BLE001 - a validator of the task's own may raise anything
            return Outcome.failed(error)
        return await self._until_settled(self._run(delivery, task, payload))

    async def _until_settled(self, run: _Run) -> Outcome:
        """Attempt the job until the database has the last word on it."""
        enter_job(run.context)
        patience = Patience()
        while True:
            outcome = await self._attempt(run)
            if isinstance(outcome, Outcome):
                return outcome
            if not patience.allows(outcome):
                return count_as_try(outcome, tries=run.delivery.tries, max_tries=run.max_tries)
            logger.info("%s:%s runs again: %s", run.context.job_id, run.task.name, outcome.why.value)
            try:
                await patience.pause(outcome.why)
            except asyncio.CancelledError as error:
                return Outcome(run.delivery.stop or Kind.INTERRUPTED, error=error)

    async def _attempt(self, run: _Run) -> Outcome | Rerun:
        """Open a scope, call the task, serialise its result; leaving the scope commits."""
        try:
            async with scope() as work:
                value = await self._call(run, work)
                result = dump(value)
        except BaseException as error:  # noqa: BLE001 - a task may raise anything, SystemExit too; the worker lives
            stopped = run.delivery.stop or _interrupted(error)
            if stopped is not None:
                return Outcome(stopped, error=error)
            return judge(error, run.task, tries=run.delivery.tries, max_tries=run.max_tries)
        return Outcome.completed(result)

    async def _call(self, run: _Run, work: Scope) -> Any:
        deadline = asyncio.timeout(run.timeout)
        try:
            async with deadline:
                return await self._caller.call(run.task, run.payload, run.context, work)
        except TimeoutError as error:
            if not deadline.expired():
                raise
            raise TimeoutError(f"{run.task.name} took longer than its timeout, {run.timeout:g} s") from error.__cause__
        finally:
            self._tell_of_early_commit(run.task, work)

    def _tell_of_early_commit(self, task: Task[..., Any], work: Scope) -> None:
        """Say it once a task: what it committed early happens again if the attempt fails and is repeated."""
        if work.has_committed and task.name not in self._known_to_commit_early:
            self._known_to_commit_early.add(task.name)
            logger.warning(
                "%s commits before it returns: if it fails after that and runs again, the committed part happens twice",
                task.name,
            )

    def _run(self, delivery: Delivery, task: Task[..., Any], payload: Mapping[str, Any]) -> _Run:
        context = JobContext(
            job_id=delivery.message.job_id,
            task=task.name,
            queue=delivery.queue,
            attempt=delivery.tries + 1,
            enqueued_at=from_milliseconds(delivery.message.enqueued_at),
            score=delivery.score,
            resources=self._resources,
        )
        options = task.options
        timeout = self._timeout if options.timeout is None else options.timeout
        max_tries = self._max_tries if options.max_tries is None else options.max_tries
        return _Run(delivery, task, payload, context, timeout, max_tries)


def _interrupted(error: BaseException) -> Kind | None:
    """What a cancellation makes of a job of which nobody has said so. One that the body made up is its own error.

    The count of cancellations alone proves nothing: on Python 3.11 a `TaskGroup` whose child failed leaves it raised.
    """
    task = asyncio.current_task()
    cancelled = isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
    return Kind.INTERRUPTED if cancelled else None

"""``Executor``: execute one admitted job, from its arguments to its outcome.

1. The arguments are validated before a session is opened.
2. Each job runs in its own asyncio task, which is cancelled at most once. A cancellation ends the body, never a COMMIT.
3. The deadline covers the body alone.
4. The result is serialised before the COMMIT: a job whose result cannot be serialised changes nothing.
5. The ledger's statement is the last before the COMMIT: effects that the ledger has recorded do not happen again.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from copy import copy
from functools import partial
from typing import Any

from db.errors import PartialCommitError
from db.scope import Scope, scope
from db.transient import Transient, transient
from worker.aio.deadline import Deadline
from worker.broker.records import now_ms
from worker.context import JobContext, enter_job, enter_pickled_job
from worker.engine.chunks import Chunks
from worker.engine.execution import Execution
from worker.engine.once import CompletedBeforeError, Once
from worker.engine.outcome import Outcome, OutcomeKind, Rerun, asks_to_run_again, count_as_try, judge
from worker.engine.progress import ProgressSender
from worker.engine.rerun_policy import BusyRows, RerunPolicy
from worker.engine.slots import Slots
from worker.engine.task_caller import TaskCaller
from worker.errors import JobExpiredError, LedgerBusyError, ResultTooLargeError, UnknownArgumentsError
from worker.message import dump
from worker.task import Task

logger = logging.getLogger("worker")

MAX_RESULT = 32 * 1024 * 1024
"""The default limit of a result, in bytes."""


class Executor:
    """Executes admitted jobs.

    Args:
        caller: calls the functions of the tasks.
        max_result: bytes that a result may have as JSON.
        resources: what the registry's lifespan yielded, by name.
        once: keeps effects from happening twice (default: without a ledger they may).
        retry_jobs: whether a job may ask to run again.
    """

    def __init__(
        self,
        caller: TaskCaller,
        *,
        max_result: int = MAX_RESULT,
        resources: Mapping[str, Any] | None = None,
        once: Once | None = None,
        retry_jobs: bool = True,
    ) -> None:
        self._caller = caller
        self._max_result = max_result
        self._resources = resources or {}
        self._once = once or Once(None)
        self._retry_jobs = retry_jobs
        self._open_scope: Callable[[], scope] = scope
        self._chunks: Chunks | None = None
        self._progress: ProgressSender | None = None
        self._reports: Mapping[JobContext, object] = {}
        self._send_progress: Callable[[JobContext, float, float | None, str], None] | None = None
        self._busy_rows = BusyRows()
        self._warned_of: set[str] = set()
        self.conflict_reruns = 0
        """Attempts that were run again after a conflict in the database."""

    def with_once(self, once: Once) -> "Executor":
        """The same executor with another `once`."""
        other = copy(self)
        other._once = once  # noqa: SLF001 - of this class
        return other

    def enter(self, execution: Execution) -> None:
        """Make the job the current one of this asyncio task. Its log lines and all code that it calls see it."""
        claim, message = execution.claim, execution.message
        execution.context = context = JobContext(
            job_id=message.job_id,
            task=execution.task.name,
            queue=execution.queue,
            attempt=claim.tries + 1,
            previous=claim.tries + claim.crashes,
            enqueued_ms=message.enqueued_at,
            score=execution.due,
            resources=self._resources,
            parent=message.parent,
            traceparent=message.traceparent,
            send_progress=self._send_progress,
        )
        enter_job(context)
        if message.is_pickled:
            enter_pickled_job()

    def use_progress(self, sender: ProgressSender) -> None:
        """Let `sender` send what jobs report of their progress (default: nothing is sent)."""
        self._progress, self._reports, self._send_progress = sender, sender.reports, sender.report

    def use_chunks(self, slots: Slots) -> None:
        """Handle jobs of chunked tasks together (default: each is a chunk of its own).

        Args:
            slots: the worker's slots. The jobs of a chunk share one.
        """
        self._chunks = Chunks(slots, self._caller, self._once, self._serialized)

    def hurry_chunks(self) -> None:
        """Start the chunks that wait for more jobs: the worker claims no more."""
        if self._chunks is not None:
            self._chunks.hurry()

    async def execute(self, execution: Execution) -> Outcome:
        """Execute one job and return its outcome. An error of the job is an outcome, and is not raised.

        Call `enter` first, in the same asyncio task. Cancel that task once at most (`Execution.cancel` does so): a
        second cancellation would interrupt the rollback. Elsewhere, wrap the call in `in_private_task`.
        """
        task, message = execution.task, execution.message
        try:
            restore = task.signature.restore_values if message.is_pickled else task.signature.restore
            execution.arguments = restore(message.args, message.kwargs)
        except BaseException as error:  # noqa: BLE001 - a validator of the task's own may raise anything
            unknown = task.signature.unknown_arguments(message.args, message.kwargs)
            if unknown:
                call = f"{task.name}{task.signature.text}"
                return Outcome(OutcomeKind.POSTPONED, error=UnknownArgumentsError.of(call, unknown))
            return Outcome.failed(error)
        outcome = await self._attempts(execution)
        if self._reports and self._progress is not None:
            with suppress(asyncio.CancelledError):  # too late: the outcome stands
                await self._progress.ended(execution.context)
        return outcome

    def _attempts(self, execution: Execution) -> Awaitable[Outcome]:
        """Attempt the job until its outcome is final, together with others if its task is chunked."""
        if self._chunks is None or execution.task.options.chunk is None:
            return self._attempt_until_final(execution)
        return self._chunks.execute(execution, partial(self._attempt_until_final, execution))

    async def _attempt_until_final(self, execution: Execution, look_first: bool = False) -> Outcome:
        """Attempt the job until its outcome is final. Run it again after transient errors of the database."""
        policy: RerunPolicy | None = None
        look_first = look_first or execution.claim.crashes > 0
        while True:
            outcome = await self._attempt(execution, look_first=look_first)
            if isinstance(outcome, Outcome):
                return outcome
            policy = policy or RerunPolicy()
            if not policy.allows(outcome):
                return _counted_as_try(outcome, execution)
            logger.info("%s:%s runs again: %s", execution.job_id, execution.task.name, outcome.why.value)
            is_conflict = outcome.why is Transient.CONFLICT
            self.conflict_reruns += is_conflict
            look_first = look_first or is_conflict  # perhaps with another attempt of this job
            try:
                await policy.pause(outcome.why)
            except asyncio.CancelledError as error:
                return _stopped(execution, error) or Outcome.failed(error)

    async def _attempt(self, execution: Execution, *, look_first: bool) -> Outcome | Rerun:
        """Open a scope, call the task, encode its result, write its row. Leaving the scope commits."""
        attempt = self._once.attempt(execution)
        try:
            if look_first and (earlier := await attempt.completed_before()) is not None:
                return earlier
            execution.has_run = True
            async with self._open_scope() as work:
                value = await (self._call_between_hooks if self._caller.has_hooks else self._call)(execution, work)
                result = self._serialized(value)
                if execution.message.is_pickled:
                    execution.returned = value
                await attempt.complete(work, result)
        except BaseException as raised:  # noqa: BLE001 - a task may raise anything, SystemExit too; the worker lives
            error = await attempt.explained(raised)
            if isinstance(error, CompletedBeforeError):
                return error.outcome
            if attempt.is_completed and _is_in_doubt(error) and (earlier := await attempt.resolve_commit()) is not None:
                return earlier
            return self._judge(error, execution)
        return Outcome.completed(result, in_ledger=attempt.is_completed)

    def _judge(self, error: BaseException, execution: Execution) -> Outcome | Rerun:
        """Decide the outcome after an error, now that the attempt is rolled back."""
        if (stopped := _stopped(execution, error)) is not None:
            return stopped
        if isinstance(error, LedgerBusyError):
            delay = self._busy_rows.put_off(execution.message)
            if delay is None:
                return _counted_as_try(Rerun(Transient.CONFLICT, error), execution)
            return Outcome(OutcomeKind.POSTPONED, error=error, delay=delay)
        if not self._retry_jobs and asks_to_run_again(error):
            return Outcome.failed(error)
        outcome = judge(error, execution.task, tries=execution.claim.tries, max_tries=execution.limits.max_tries)
        return _unless_expired(outcome, execution) if execution.claim.expires_in else outcome

    def _serialized(self, value: object) -> bytes:
        if value is None:
            return b"null"
        result = dump(value)
        if len(result) > self._max_result:
            raise ResultTooLargeError(
                f"{len(result)} bytes of JSON are too many for a result, WORKER_MAX_RESULT allows {self._max_result}: "
                "store the value and return its key"
            )
        return result

    async def _call_between_hooks(self, execution: Execution, work: Scope) -> Any:
        """Call the task between arq's hooks. As in arq, the task's timeout does not include them."""
        execution.keep_lease()
        await self._caller.begin(execution, work)
        try:
            value = await self._call(execution, work)
        except BaseException:
            await self._caller.end_failed(execution)
            raise
        execution.keep_lease()
        await self._caller.end(execution)
        return value

    async def _call(self, execution: Execution, work: Scope) -> Any:
        """Call the task. Past its deadline it has timed out, even if it suppressed that or blocked the event loop."""
        execution.keep_lease()
        timeout = execution.limits.timeout
        deadline = Deadline(timeout)
        try:
            with deadline:
                value = await self._caller.call(execution, work)
        except (TimeoutError, asyncio.CancelledError) as error:
            if not deadline.expired:
                raise
            raise _timed_out(execution) from error.__cause__ or error
        except Exception as error:
            # A cancellation that cuts off a statement can cost the connection: another run would time out, too. The
            # error is not made the cause: a cause that is transient would make the job run again.
            if deadline.expired and transient(error) is not None:
                raise _timed_out(execution)  # noqa: B904 - see above
            raise
        finally:
            self._warn_of_early_commit(execution.task, work)
        # The clock is read, too: while a body blocks the event loop, no deadline can expire.
        if deadline.expired or time.monotonic() > execution.attempt_began + timeout:
            raise _timed_out(execution)
        return value

    def _warn_of_early_commit(self, task: Task[..., Any], work: Scope) -> None:
        """Warn once a task that its early commits happen again if the attempt fails and is repeated."""
        if work.is_unused or not work.has_committed:
            return
        if task.name not in self._warned_of:
            self._warned_of.add(task.name)
            logger.warning(
                "%s commits before it returns: if it fails after that and runs again, the committed part happens twice",
                task.name,
            )


def _counted_as_try(rerun: Rerun, execution: Execution) -> Outcome:
    return count_as_try(rerun, tries=execution.claim.tries, max_tries=execution.limits.max_tries)


def _unless_expired(outcome: Outcome | Rerun, execution: Execution) -> Outcome | Rerun:
    """The outcome of a job whose producer has set arq's `_expires`: it does not run again after that time."""
    if isinstance(outcome, Rerun) or outcome.kind is not OutcomeKind.RETRIED:
        return outcome
    if now_ms() + outcome.delay * 1000 < execution.started_at + execution.claim.expires_in:
        return outcome
    expired = JobExpiredError("job expired: it would run again after its _expires")
    expired.__cause__ = outcome.error
    return Outcome(OutcomeKind.EXPIRED, error=expired)


def _is_in_doubt(error: BaseException) -> bool:
    """Whether the COMMIT that failed with `error` may have happened."""
    refused = error.__cause__ if isinstance(error, PartialCommitError) else error
    return refused is not None and transient(refused) is Transient.LOST


def _stopped(execution: Execution, error: BaseException) -> Outcome | None:
    """Return the outcome of a job that this engine has stopped, else None.

    Only `cancelled_as` counts. The task's count of cancellations proves nothing: a body can increase it, and on Python
    3.11 and 3.12 a `TaskGroup` whose child failed leaves it increased.
    """
    stop = execution.cancelled_as
    if stop is OutcomeKind.ABORTED and not isinstance(error, asyncio.CancelledError):
        # Clients recognise an abort by this error, even if the body has raised another one when it was cancelled.
        aborted = asyncio.CancelledError()
        aborted.__cause__ = error
        error = aborted
    return None if stop is None else Outcome(stop, error=error)


def _timed_out(execution: Execution) -> TimeoutError:
    return TimeoutError(f"{execution.task.name} took longer than its timeout, {execution.limits.timeout:g} s")

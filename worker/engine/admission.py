"""``Admission``: decide whether a claimed job may run."""

import asyncio
from collections.abc import Mapping
from typing import Any

from db.text.plural import plural
from worker.engine.execution import Execution
from worker.engine.limits import Limits
from worker.engine.outcome import Outcome, OutcomeKind
from worker.errors import (
    JobExpiredError,
    PayloadError,
    PayloadTooLargeError,
    PoisonJobError,
    TriesExhaustedError,
    UnknownTaskError,
)
from worker.message import Message
from worker.task import Task

_MOST_TRIES = 1_000_000_000
"""MOST of scripts/claim.lua."""


class Admission:
    """Admits claimed jobs.

    Args:
        tasks: the tasks of this worker, by name.
        limits: the limits of each task, by its name.
        widest_limits: the limits of a job until its task is known.
        max_crashes: worker crashes during one job after which the job is considered poison.
        accept_pickle: whether payloads may be pickles.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task[..., Any]],
        limits: Mapping[str, Limits],
        widest_limits: Limits,
        *,
        max_crashes: int,
        accept_pickle: bool,
    ) -> None:
        self._tasks = tasks
        self._limits = limits
        self.widest_limits = widest_limits
        self._max_crashes = max_crashes
        self._accept_pickle = accept_pickle

    def admit(self, execution: Execution) -> Outcome | None:
        """Read the job's message and find its task. Return the job's outcome if the job must not run, else None."""
        claim = execution.claim
        if claim.unread:
            return Outcome.failed(_too_large(claim.unread))
        if claim.payload is None:
            return Outcome(OutcomeKind.EXPIRED, error=JobExpiredError("job expired: it waited longer than it may"))
        try:
            message = Message.decode(execution.job_id, claim.payload, accept_pickle=self._accept_pickle)
        except PayloadError as error:
            return Outcome.failed(error)
        execution.message = message
        if execution.is_abort_requested(claim.abort_at):
            return Outcome(OutcomeKind.ABORTED, error=asyncio.CancelledError())
        if claim.crashes >= self._max_crashes:
            return Outcome.failed(
                PoisonJobError(
                    f"its worker died {plural(claim.crashes, 'time')} while it ran; WORKER_MAX_CRASHES allows no more"
                )
            )
        task = self._tasks.get(message.task)
        if task is None:
            return Outcome(OutcomeKind.POSTPONED, error=UnknownTaskError.of(message.task))
        execution.task = task
        execution.limits = self._limits[message.task]
        return None if message.first_try <= claim.tries + 1 else _begin_at(message.first_try, execution)


def _begin_at(first_try: int, execution: Execution) -> Outcome | None:
    """Count from the try that the producer gave. The job's outcome, if it may have no such try."""
    execution.claim = execution.claim._replace(tries=min(first_try, _MOST_TRIES) - 1)
    allowed = execution.limits.max_tries
    if first_try <= allowed:
        return None
    return Outcome.failed(TriesExhaustedError(f"max {allowed} retries exceeded: its _job_try is {first_try}"))


def _too_large(size: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(
        f"its payload has {size} bytes, and a worker reads 8 times WORKER_MAX_PAYLOAD at most: store the "
        "arguments and enqueue their key, or raise WORKER_MAX_PAYLOAD"
    )

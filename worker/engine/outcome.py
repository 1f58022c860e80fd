"""``Outcome``: how an attempt of a job ended, as one value, decided before anything is recorded.

1. The outcome is what the database says: an exception that arrives after the COMMIT changes nothing.
2. `Retry`, and the exceptions in `retry_on`, run the job again while tries are left; all others are final.
3. The database's transient errors run the job again in a new session at no cost (`Rerun`). An error that persists
   costs one try.
4. Each member of an exception group is judged. One final member makes the group final; else the longest wait counts.
"""

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from db.text.plural import plural
from db.transient import Transient, transient
from worker.aio.backoff import Backoff
from worker.errors import Retry, TriesExhaustedError
from worker.task import Task

logger = logging.getLogger("worker")

_BACKOFF = Backoff(1.0, 300.0, jitter=(0.75, 1.25))  # seconds
_ARQ_RETRIES = frozenset({"Retry", "RetryJob"})
_LATER = 1.0  # seconds until a job that could not begin now is due again


class OutcomeKind(Enum):
    """The kinds of outcomes."""

    COMPLETED = "completed"
    DUPLICATE = "duplicate"
    """The ledger says that an earlier attempt completed it."""
    RETRIED = "retried"
    FAILED = "failed"
    ABORTED = "aborted"
    EXPIRED = "expired"
    INTERRUPTED = "interrupted"
    """A shutdown stopped it; it goes back to its place in the queue."""
    POSTPONED = "postponed"
    """The job cannot run now (this worker does not know its task yet, say). It is due again later, at no cost."""
    ABANDONED = "abandoned"
    """Its lease was lost: another worker has it."""

    __hash__ = object.__hash__  # an enum's own is slow, and each job's kind is looked up several times


# CPython 3.11 takes 100 ns to read an enum's member, and 7 ns to read a global. So the members that every job needs are
# globals, here and in other modules.
_COMPLETED = OutcomeKind.COMPLETED


class Outcome(NamedTuple):
    """How one attempt of a job ended."""

    kind: OutcomeKind
    result: bytes = b"null"
    """The task's return value, as JSON."""
    error: BaseException | None = None
    """The error that ended the job, or this attempt of it."""
    delay: float = 0.0
    """Seconds until the next attempt, for `RETRIED` and `POSTPONED`."""
    in_ledger: bool = False
    """Whether the ledger has it already, from the transaction of this attempt or of an earlier one."""

    @classmethod
    def completed(cls, result: bytes, *, in_ledger: bool = False) -> "Outcome":
        return cls(_COMPLETED, result=result, in_ledger=in_ledger)

    @classmethod
    def failed(cls, error: BaseException) -> "Outcome":
        return cls(OutcomeKind.FAILED, error=error)


@dataclass(frozen=True, slots=True)
class Rerun:
    """No outcome yet: a transient error of the database, after which the same attempt may run again."""

    why: Transient
    error: BaseException


def judge(error: BaseException, task: Task[..., object], *, tries: int, max_tries: int) -> Outcome | Rerun:
    """Decide what follows after `error` has ended an attempt of `task`. `tries` counts the earlier failures."""
    wait = _wait(error, task.options.retry_on, tries)
    if wait is None and isinstance(error, asyncio.CancelledError) and task.is_arq:
        wait = 0.0  # as in arq; a job that is aborted or interrupted does not get here
    if wait is None:
        return Outcome.failed(error)
    members = [*_members(error)]
    why = transient(error)
    if why is not None and not any(map(_is_retry, members)):
        return Rerun(why, error)
    if all(_is_retry(member) or transient(member) is not None for member in members):
        error = _exhausted(error, tries)
    return _retry_or_fail(error, tries, max_tries, wait)


def asks_to_run_again(error: BaseException) -> bool:
    """Whether a task raised arq's `Retry` or `RetryJob`, Tandem's `Retry`, or a `CancelledError`."""
    return all(_is_retry(member) or isinstance(member, asyncio.CancelledError) for member in _members(error))


def judge_outside_body(
    error: BaseException, job_id: str, cancelled_as: OutcomeKind | None, *, is_read: bool
) -> Outcome:
    """The outcome of a job that ended with `error` before its body began, or after it.

    Args:
        cancelled_as: the outcome that the engine set when it cancelled the job; None if it did not.
        is_read: whether the job's message was read.
    """
    if isinstance(error, asyncio.CancelledError) and cancelled_as is not None:
        return Outcome(cancelled_as, error=error)
    # Another job's code cancelled this asyncio task, or the database is away. This job has not begun.
    if isinstance(error, asyncio.CancelledError) or (not is_read and transient(error) is not None):
        return Outcome(OutcomeKind.POSTPONED, error=error, delay=_LATER)
    logger.error("internal error while handling job %s; the job is marked failed", job_id, exc_info=error)
    return Outcome.failed(error)


def count_as_try(rerun: Rerun, *, tries: int, max_tries: int) -> Outcome:
    """The outcome of a transient error that persisted through all reruns; it costs a try."""
    return _retry_or_fail(rerun.error, tries, max_tries, backoff(tries))


def backoff(tries: int) -> float:
    """Seconds to wait after the `tries`-th failed try, counted from 0: 1, 2, 4, ... up to 5 minutes, with jitter."""
    return _BACKOFF.after(tries)


def _retry_or_fail(error: BaseException, tries: int, max_tries: int, delay: float) -> Outcome:
    if tries + 1 >= max_tries:
        return Outcome.failed(error)
    return Outcome(OutcomeKind.RETRIED, error=error, delay=delay)


def _requested_delay(error: BaseException) -> float | None:
    """Seconds to wait if the task raised `Retry`; None if it did not."""
    if isinstance(error, Retry):
        return error.defer
    # arq's `Retry` and `RetryJob`, which tasks written for arq raise. They are known by their names, as this package
    # does not import arq.
    if any(kind.__module__ == "arq.worker" and kind.__name__ in _ARQ_RETRIES for kind in type(error).__mro__):
        return float(getattr(error, "defer_score", None) or 0) / 1000
    return None


def _is_retry(error: BaseException) -> bool:
    return _requested_delay(error) is not None


def _exhausted(cause: BaseException, tries: int) -> TriesExhaustedError:
    error = TriesExhaustedError(
        f"gave up after {plural(tries + 1, 'try', 'tries')}: "
        "the task raised Retry, but @task(max_tries=...) allows no more"
    )
    error.__cause__ = cause
    return error


def _wait(error: BaseException, retry_on: tuple[type[Exception], ...], tries: int) -> float | None:
    """Seconds until an attempt that ended with `error` may run again; None if the error is final."""
    defer = _requested_delay(error)
    if defer is not None:
        return defer
    if isinstance(error, BaseExceptionGroup):
        waits = [_wait(member, retry_on, tries) for member in error.exceptions]
        longest = [wait for wait in waits if wait is not None]
        if len(longest) == len(waits):
            return max(longest)
    elif transient(error) is not None:
        return 0.0
    return backoff(tries) if isinstance(error, retry_on) else None


def _members(error: BaseException) -> Iterator[BaseException]:
    """The members of an exception group, nested groups included; for any other error, the error itself."""
    if isinstance(error, BaseExceptionGroup):
        for member in error.exceptions:
            yield from _members(member)
    else:
        yield error

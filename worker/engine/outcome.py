"""``Outcome``: what became of a job, as one value, decided before anything is recorded.

1. The outcome is what the database says: an exception that arrives after the COMMIT changes nothing.
2. `Retry`, and the exceptions in `retry_on`, run the job again while tries are left; all others are final.
3. The database's transient errors run it again in a new session without costing a try (`Rerun`); those that go on count
   as one.
"""

import random
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from db.transient import Transient, transient
from worker.errors import Retry, TriesExhaustedError
from worker.task import Task

_LONGEST_BACKOFF = 300.0  # seconds


class Kind(Enum):
    """What became of a job."""

    COMPLETED = "completed"
    DUPLICATE = "duplicate"
    """The ledger knew it had completed before."""
    RETRIED = "retried"
    FAILED = "failed"
    ABORTED = "aborted"
    EXPIRED = "expired"
    INTERRUPTED = "interrupted"
    """By a shutdown: back to its place in the queue."""
    POSTPONED = "postponed"
    """It cannot run now (this worker does not know its task yet, say): due again later, at no cost."""
    ABANDONED = "abandoned"
    """Its lease was lost: another worker has it."""

    __hash__ = object.__hash__  # an enum's own is slow, and each job's kind is looked up several times


class Outcome(NamedTuple):
    """What became of one job."""

    kind: Kind
    result: bytes = b"null"
    """What the task returned, as JSON."""
    error: BaseException | None = None
    """What ended it, or this attempt of it."""
    delay: float = 0.0
    """Seconds until the next attempt, for `RETRIED` and `POSTPONED`."""
    in_ledger: bool = False
    """Whether the ledger knows of it already, from the job's own transaction or from an earlier attempt's."""

    @classmethod
    def completed(cls, result: bytes, *, in_ledger: bool = False) -> "Outcome":
        return cls(Kind.COMPLETED, result=result, in_ledger=in_ledger)

    @classmethod
    def failed(cls, error: BaseException) -> "Outcome":
        return cls(Kind.FAILED, error=error)


@dataclass(frozen=True, slots=True)
class Rerun:
    """Not an outcome yet: the database asks for another try of the same attempt."""

    why: Transient
    error: BaseException


def judge(error: BaseException, task: Task[..., object], *, tries: int, max_tries: int) -> Outcome | Rerun:
    """What `error`, which ended an attempt of `task`, means for its job; `tries` counts the earlier failures."""
    defer = _asked_for(error)
    if defer is not None:
        return _again(_exhausted(error, tries), tries, max_tries, defer)
    why = transient(error)
    if why is not None:
        return Rerun(why, error)
    if _is_one_of(error, task.options.retry_on):
        return _again(error, tries, max_tries, backoff(tries))
    return Outcome.failed(error)


def count_as_try(rerun: Rerun, *, tries: int, max_tries: int) -> Outcome:
    """The outcome of trouble that did not go away by running again at once."""
    return _again(rerun.error, tries, max_tries, backoff(tries))


def backoff(tries: int) -> float:
    """Seconds to wait after the `tries`-th failed try, counted from 0: 1, 2, 4, ... up to 5 minutes, with jitter.

    Jitter keeps jobs that failed together from coming back together.
    """
    return min(2.0 ** min(tries, 10), _LONGEST_BACKOFF) * random.uniform(0.75, 1.25)  # noqa: S311 - not a secret


def _again(error: BaseException, tries: int, max_tries: int, delay: float) -> Outcome:
    if tries + 1 >= max_tries:
        return Outcome.failed(error)
    return Outcome(Kind.RETRIED, error=error, delay=delay)


def _asked_for(error: BaseException) -> float | None:
    """Seconds to wait, if the task asked to be run again; None if it did not."""
    if isinstance(error, Retry):
        return error.defer
    # arq's own, told by its name, as this package does not import arq: a task written for arq imports it from there.
    if any(kind.__module__ == "arq.worker" and kind.__name__ == "Retry" for kind in type(error).__mro__):
        return float(getattr(error, "defer_score", None) or 0) / 1000
    return None


def _exhausted(asked: BaseException, tries: int) -> TriesExhaustedError:
    error = TriesExhaustedError(
        f"gave up after {tries + 1} tries: it asked for one more than @task(max_tries=...) allows"
    )
    error.__cause__ = asked
    return error


def _is_one_of(error: BaseException, kinds: tuple[type[Exception], ...]) -> bool:
    """Whether `error` is of these kinds; a group is if all of its members are."""
    if isinstance(error, BaseExceptionGroup):
        return isinstance(error, kinds) or all(_is_one_of(member, kinds) for member in error.exceptions)
    return isinstance(error, kinds)

"""The errors of `worker`, and `Retry`, which a task raises to be run again.

    WorkerError
    ├── ConfigError               a setting is missing or wrong
    ├── RegistryError             the registry cannot be loaded; it lists all problems
    ├── TaskDefinitionError       a function cannot be a task, or a schedule is wrong
    ├── EnqueueError              a job cannot be enqueued
    │   ├── PayloadTooLargeError      its arguments are larger than WORKER_MAX_PAYLOAD
    │   └── PayloadNotJSONError       JSON would change an argument (also a TypeError)
    ├── UnknownTaskError          a job's task is not in this worker's registry
    ├── UnknownArgumentsError     a job has arguments that this worker's task does not take
    ├── PayloadError              a message in the queue cannot be decoded
    ├── JobExpiredError           a job waited longer than it may
    ├── PoisonJobError            WORKER_MAX_CRASHES workers died while they ran a job
    ├── TriesExhaustedError       a task asked for a retry, and no try is left
    ├── ResultTooLargeError       a task's result is larger than WORKER_MAX_RESULT
    ├── LedgerError               the ledger's table is missing or old, or its database can hold no ledger
    ├── LedgerAwayError           the ledger's database does not answer
    ├── LedgerBusyError           another transaction holds a job row, or the whole table
    ├── ResultNotFoundError       there is no such job, or its result was not kept
    ├── JobNotCommittedError      the transaction that a job was enqueued in is not committed
    └── JobFailed                 the exception that ended a job, as data

    Retry                         not an error: run the job again

Arguments that do not fit a task's signature raise `TypeError` or `pydantic.ValidationError` where the job is
enqueued, as a plain call would.
"""

from __future__ import annotations

import math
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "EnqueueError",
    "JobExpiredError",
    "JobFailed",
    "JobNotCommittedError",
    "LedgerAwayError",
    "LedgerBusyError",
    "LedgerError",
    "PayloadError",
    "PayloadNotJSONError",
    "PayloadTooLargeError",
    "PoisonJobError",
    "RegistryError",
    "ResultNotFoundError",
    "ResultTooLargeError",
    "Retry",
    "TaskDefinitionError",
    "TriesExhaustedError",
    "UnknownArgumentsError",
    "UnknownTaskError",
    "WorkerError",
]


class WorkerError(Exception):
    """The base of every error below."""


class ConfigError(WorkerError):
    """Settings are missing or wrong. The message has a line for each, with the variable and an example."""


class RegistryError(WorkerError):
    """The registry cannot be loaded.

    `problems` holds every problem that was found, each as one line.
    """

    problems: tuple[str, ...]

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


class TaskDefinitionError(WorkerError):
    """A function cannot be a task, or a schedule is wrong. It is raised at the declaration."""


class EnqueueError(WorkerError):
    """A job cannot be enqueued. Nothing was enqueued."""


class PayloadTooLargeError(EnqueueError):
    """The arguments are larger than `WORKER_MAX_PAYLOAD`: store them, and enqueue their key.

    A job of other software with more than eight times as many bytes fails with this error too, and no worker reads it.
    """


class PayloadNotJSONError(EnqueueError, TypeError):
    """JSON would change an argument: annotate the parameter, or pass a JSON value."""


class UnknownTaskError(WorkerError):
    """A job's task is in the registry of no living worker of its queue."""

    @classmethod
    def of(cls, task: str) -> UnknownTaskError:
        return cls(f"no task {task!r} in this worker's registry")

    def for_good(self, seconds: float) -> UnknownTaskError:
        """The error of a job that was put back for `seconds` and now fails."""
        return UnknownTaskError(
            f"{self}, nor in that of another living worker of its queue{_for(seconds, ', ')}: list it in TASKS"
        )


class UnknownArgumentsError(WorkerError):
    """A job has arguments that this worker's task does not take: the producer runs other code."""

    @classmethod
    def of(cls, call: str, arguments: Iterable[str]) -> UnknownArgumentsError:
        return cls(f"{call} does not take {', '.join(arguments)}")

    def for_good(self, seconds: float) -> UnknownArgumentsError:
        """The error of a job that was put back for `seconds` and now fails."""
        return UnknownArgumentsError(
            f"{self}, and no worker whose task does has claimed the job{_for(seconds)}: deploy the workers before "
            "the code that enqueues"
        )


class PayloadError(WorkerError):
    """A message in the queue cannot be decoded: it is a pickle, or was written by other software."""


class JobExpiredError(WorkerError):
    """A job waited in the queue for longer than it may: see `using(expires=...)`."""


class PoisonJobError(WorkerError):
    """`WORKER_MAX_CRASHES` workers died while they ran the job, so it is considered poison and fails."""


class TriesExhaustedError(WorkerError):
    """A task raised `Retry` in its last try: allow more tries with `@task(max_tries=...)`."""


class ResultTooLargeError(WorkerError):
    """A task's result is larger than `WORKER_MAX_RESULT`: store it, and return its key. Nothing was committed."""


class LedgerError(WorkerError):
    """The ledger's table is missing or old, or its database can hold no ledger. The message says what to type."""


class LedgerAwayError(WorkerError):
    """Redis does not have the job, and the ledger's database does not answer: try again later."""


class LedgerBusyError(WorkerError):
    """Another transaction held a job's row in the ledger, or the whole table, for too long."""


class ResultNotFoundError(WorkerError):
    """There is no such job, or its result is not kept."""


class JobNotCommittedError(WorkerError):
    """The transaction that the job was enqueued in is not committed, and the job exists only after its COMMIT."""


class JobFailed(WorkerError):  # noqa: N818 - named for the job, which has failed, not for the code that waits
    """The exception that ended a job, as data. The process that receives it does not need the exception's class.

    `type` is the exception's class, with its module unless it is built in. `message` is its text. `traceback` is the
    worker's formatted traceback, or empty.
    """

    type: str
    message: str
    traceback: str

    def __init__(self, type: str, message: str, traceback: str = "") -> None:  # noqa: A002 - the attribute's name
        self.type = type
        self.message = message
        self.traceback = traceback
        super().__init__(type, message, traceback)

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


class Retry(Exception):  # noqa: N818 - a request, not an error
    """Raise it in a task to roll back and run the job again, `defer` seconds from now (default: at once).

    The attempt counts as a try, as does every attempt that ends with an exception of the task's.

    Raises:
        ValueError: `defer` is negative or not finite.
    """

    defer: float
    """Seconds to wait before the next attempt."""

    def __init__(self, defer: float | timedelta | None = None) -> None:
        seconds = defer.total_seconds() if isinstance(defer, timedelta) else float(defer or 0)
        if not math.isfinite(seconds) or seconds < 0:
            raise ValueError(f"Retry(defer={defer!r}): give the seconds to wait, 0 or more, as in Retry(defer=30)")
        self.defer = seconds
        super().__init__(seconds)

    def __str__(self) -> str:
        return f"run again in {self.defer:g} s"


class Stopped(SystemExit):
    """A signal ends the process while it starts. Tandem alone raises it, never the project's code."""


def _for(seconds: float, before: str = " ") -> str:
    return f"{before}for {seconds:g} s" if seconds else ""

"""What `worker` raises, and the one thing a task raises to ask for another attempt.

    WorkerError
    ├── ConfigError               a setting is missing or wrong
    ├── RegistryError             the registry cannot be loaded; all its problems at once
    ├── TaskDefinitionError       a function that cannot be a task, or a schedule that cannot be one
    ├── EnqueueError              a job that the queue will not take
    │   ├── PayloadTooLargeError      its arguments are larger than WORKER_MAX_PAYLOAD
    │   └── PayloadNotJSONError       an argument that JSON would change (also a TypeError)
    ├── UnknownTaskError          a job for a task that this worker does not have
    ├── UnknownArgumentsError     a job with arguments that this worker's task does not take
    ├── PayloadError              a message in the queue that cannot be decoded
    ├── JobExpiredError           a job waited longer than it may
    ├── PoisonJobError            a job whose worker died each time it ran
    ├── TriesExhaustedError       a task asked for one attempt more than it may have
    ├── ResultTooLargeError       what a task returned is larger than WORKER_MAX_RESULT
    ├── LedgerError               the ledger's table is missing or old, or its database can hold none
    ├── LedgerAwayError           the ledger's database does not say what it knows of a job
    ├── LedgerBusyError           another transaction holds a job's row in the ledger, or the whole table
    ├── ResultNotFoundError       nobody knows, or nobody kept, the result of that job
    ├── JobNotCommittedError      a job that cannot run yet: the transaction it was enqueued in is not committed
    └── JobFailed                 the exception that ended a job, as data

    Retry                         not an error: "run this job again"

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
    """A setting is missing or wrong: one line for each, naming the variable and showing an example."""


class RegistryError(WorkerError):
    """The registry cannot be loaded.

    `problems` holds every problem that was found, one or more, each a text of one line.
    """

    problems: tuple[str, ...]

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        return "\n".join(self.problems)


class TaskDefinitionError(WorkerError):
    """A function that cannot be a task, or a schedule that cannot be one: raised where it is declared."""


class EnqueueError(WorkerError):
    """A job that the queue will not take. Nothing was enqueued."""


class PayloadTooLargeError(EnqueueError):
    """The arguments are larger than `WORKER_MAX_PAYLOAD`: store them, and enqueue their key.

    It also ends a job that other software has queued with more than eight times as many bytes: no worker reads it.
    """


class PayloadNotJSONError(EnqueueError, TypeError):
    """An argument that would not come out of JSON as it went in: annotate it, or pass a JSON value."""


class UnknownTaskError(WorkerError):
    """A job names a task that is not in this worker's registry, nor in that of another living one of its queue."""

    @classmethod
    def of(cls, task: str) -> UnknownTaskError:
        return cls(f"no task {task!r} in this worker's registry")

    def for_good(self, seconds: float) -> UnknownTaskError:
        """The error of a job that has waited for so long."""
        return UnknownTaskError(
            f"{self}, nor in that of another living worker of its queue, for {seconds:g} s: list it in TASKS"
        )


class UnknownArgumentsError(WorkerError):
    """A job has arguments that the task of this worker does not take: whoever enqueued it runs other code."""

    @classmethod
    def of(cls, call: str, arguments: Iterable[str]) -> UnknownArgumentsError:
        return cls(f"{call} does not take {', '.join(arguments)}")

    def for_good(self, seconds: float) -> UnknownArgumentsError:
        """The error of a job that has waited for so long."""
        return UnknownArgumentsError(
            f"{self}, and no worker that does has come for {seconds:g} s: deploy the code that takes it to the workers "
            "before the code that enqueues it"
        )


class PayloadError(WorkerError):
    """A message in the queue that cannot be decoded: written by other software, or by pickle."""


class JobExpiredError(WorkerError):
    """A job waited in the queue for longer than it may: see `using(expires=...)`."""


class PoisonJobError(WorkerError):
    """A job whose worker died each time it ran, so it is not tried any more: see `WORKER_MAX_CRASHES`."""


class TriesExhaustedError(WorkerError):
    """A task raised `Retry` in its last attempt: give it more with `@task(max_tries=...)`."""


class ResultTooLargeError(WorkerError):
    """What a task returned is larger than `WORKER_MAX_RESULT`: store it, and return its key. Nothing was committed."""


class LedgerError(WorkerError):
    """The ledger's table is missing or old, or its database can hold none: one line says what to do."""


class LedgerAwayError(WorkerError):
    """Redis does not know the job, and the ledger's database does not answer just now: try again."""


class LedgerBusyError(WorkerError):
    """Another transaction holds a job's row in the ledger, or the whole table, for longer than it is worth waiting."""


class ResultNotFoundError(WorkerError):
    """There is no such job, or its result was not kept or is kept no longer."""


class JobNotCommittedError(WorkerError):
    """A job cannot be waited for, as the transaction that it was enqueued in is open: it exists from the COMMIT on."""


class JobFailed(WorkerError):  # noqa: N818 - reads as what happened: the job failed, not the one who asks
    """The exception that ended a job, as data: its class need not exist in the process that asks.

    `type` is the exception's class, with its module unless it is built in, `message` its text, `traceback` the
    formatted traceback of the worker, empty where there was none.
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

    It counts as a try, as every attempt whose body ends with an exception.

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
    """A signal ends the process while it starts. No code of a project's has raised this."""

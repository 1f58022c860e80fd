"""The options of jobs: `TaskOptions` for all jobs of a task, `JobOptions` for those of one call.

Both are validated where they are given, so that a traceback shows where the mistake was made.
"""

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from worker.broker.records import to_ms
from worker.client.chunk import Chunk
from worker.client.own_session import OwnSession, is_own_session
from worker.new_job import A_DAY

LONGEST = 100 * 365 * 86400.0
"""Seconds: 100 years, in place of no limit. Redis counts milliseconds in 64 bits."""

LONGEST_ID = 2000
"""Bytes. PostgreSQL's indexes take some 2,700: https://www.postgresql.org/docs/current/limits.html"""


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """The options of all jobs of a task. None means the worker's setting."""

    queue: str | None = None
    """The queue its jobs are put into (default: ``WORKER_QUEUE``)."""
    timeout: float | None = None
    """Seconds that one attempt may take (default: ``WORKER_JOB_TIMEOUT``)."""
    max_tries: int | None = None
    """Attempts before the job fails for good (default: ``WORKER_MAX_TRIES``)."""
    retry_on: tuple[type[Exception], ...] = ()
    """Exceptions after which the job runs again, with growing pauses (default: none). After `Retry` and the database's
    transient errors it always runs again."""
    keep_result: float | None = None
    """Seconds for which the result is kept (default: ``WORKER_KEEP_RESULT``). 0 keeps none."""
    transactional: bool = True
    """Whether, inside a scope, a job exists if and only if the scope commits."""
    once: bool = True
    """Whether the ledger prevents a job's changes in the database from happening twice."""
    chunk: Chunk | None = None
    """How many jobs one call handles in one transaction (default: each job is a call of its own)."""

    @classmethod
    def checked(
        cls,
        *,
        queue: str | None,
        timeout: float | timedelta | None,
        max_tries: int | None,
        retry_on: tuple[type[Exception], ...],
        keep_result: float | timedelta | None,
        transactional: bool,
        once: bool,
        chunk: Chunk | None,
    ) -> "TaskOptions":
        """Options from validated arguments.

        Raises:
            TypeError, ValueError: an argument is wrong or out of range.
        """
        return cls(
            queue=text(queue, "queue"),
            timeout=None if timeout is None else _more_than_0(timeout, "timeout"),
            max_tries=None if max_tries is None else _count(max_tries, "max_tries"),
            retry_on=_exceptions(retry_on),
            keep_result=None if keep_result is None else _seconds(keep_result, "keep_result"),
            transactional=transactional,
            once=once,
            chunk=_chunk(chunk),
        )


@dataclass(frozen=True, slots=True)
class JobOptions:
    """The options of the jobs of one call, from `Task.using`. Times are milliseconds."""

    delay: int = 0
    due: int | None = None
    """The due time since the epoch, instead of a delay."""
    job_id: str | None = None
    queue: str | None = None
    expires: int | None = None
    """The time after its due time within which a job may be started. None: see `expiry`."""
    transactional: bool | None = None
    session: OwnSession | None = None
    """The caller's own session, whose transaction the jobs are part of."""

    @classmethod
    def checked(
        cls,
        *,
        delay: float | timedelta,
        at: datetime | None,
        job_id: str | None,
        queue: str | None,
        expires: float | timedelta | None,
        transactional: bool | None,
        session: OwnSession | None,
    ) -> "JobOptions":
        """Options from validated arguments.

        Raises:
            TypeError, ValueError: an argument is wrong or out of range.
        """
        return cls(
            delay=round(_seconds(delay, "delay") * 1000),
            due=_due(at, delay),
            job_id=_id(job_id),
            queue=text(queue, "queue"),
            expires=None if expires is None else math.ceil(_more_than_0(expires, "expires") * 1000),
            transactional=transactional,
            session=_session(session, transactional),
        )

    def expiry(self, *, in_transaction: bool) -> int | None:
        """The time after its due time within which a job may be started. None means for ever.

        Without `expires` it is a day, as in arq. A job of a transaction does not expire, as the commit
        promises that it runs.
        """
        return A_DAY if self.expires is None and not in_transaction else self.expires


def _seconds(value: float | timedelta, name: str) -> float:
    seconds = value.total_seconds() if isinstance(value, timedelta) else float(value)
    if not 0 <= seconds <= LONGEST:
        raise ValueError(f"{name}={value!r}: give seconds, 0 or more, or a timedelta")
    return seconds


def _more_than_0(value: float | timedelta, name: str) -> float:
    seconds = _seconds(value, name)
    if seconds == 0:
        raise ValueError(f"{name}={value!r} must be more than 0")
    return seconds


def _count(value: object, name: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name}={value!r}: give a whole number, 1 or more")
    return value


def _exceptions(value: object) -> tuple[type[Exception], ...]:
    if not isinstance(value, tuple) or not all(map(_is_exception, value)):
        raise ValueError(f"retry_on={value!r}: give exception classes in a tuple, as in retry_on=(TimeoutError,)")
    return value


def _is_exception(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def _due(at: datetime | None, delay: float | timedelta) -> int | None:
    if at is None:
        return None
    if delay:
        raise ValueError("give delay or at, not both")
    if at.tzinfo is None:
        raise ValueError(f"at={at!r} has no time zone: use datetime.now(UTC) + ..., or give delay")
    return to_ms(at)


def _session(value: object, transactional: bool | None) -> Any:
    if value is None:
        return None
    if not is_own_session(value):
        raise TypeError(
            f"session={value!r}: give a session or a connection of SQLAlchemy (AsyncSession, Session, a scoped one, "
            "AsyncConnection, Connection), or django.db.connection"
        )
    if transactional is False:
        raise ValueError("a job in a session is part of its transaction: leave out session or transactional=False")
    return value


def _id(value: object) -> str | None:
    job_id = text(value, "job_id")
    if job_id is not None and len(job_id.encode()) > LONGEST_ID:
        raise ValueError(f"job_id={job_id[:40]!r}... has more than {LONGEST_ID:,} bytes: give a hash of it")
    return job_id


def text(value: object, name: str) -> str | None:
    """Return `value` if it is None or a text of valid characters.

    Raises:
        TypeError, ValueError: it is neither.
    """
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r}: give a text")
    if not value or not _is_storable(value):
        raise ValueError(f"{name}={value!r}: give a text of valid characters, or leave it out")
    return value


def _is_storable(value: str) -> bool:
    """Whether both servers can store the text: PostgreSQL's texts have no NUL, and Redis' keys are bytes."""
    return "\0" not in value and value.encode(errors="replace").decode() == value


def _chunk(value: Any) -> Chunk | None:
    if value is None or isinstance(value, Chunk):
        return value
    raise TypeError(f"chunk={value!r} is not a Chunk: write chunk=Chunk(size=100)")

"""The status of a job from the ledger, if Redis does not know the job yet or any more."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from pydantic_core import from_json
from sqlalchemy.exc import SQLAlchemyError

from db.database import given_default
from db.errors import DbError, NestedWriterError, PoolExhaustedError
from db.transient import transient
from worker.broker.records import JobStatus
from worker.context import from_milliseconds
from worker.errors import JobExpiredError, JobFailed, LedgerAwayError, LedgerError, PayloadError
from worker.exception_codec import error_data, error_from
from worker.ledger import Ledger, State
from worker.ledger.default import default_ledger
from worker.message import Message

T = TypeVar("T")


class LedgerStatus:
    """The status of one job, from its row."""

    def __init__(self, row: Mapping[str, Any]) -> None:
        self._row = row
        self._state = State(row["state"])

    @property
    def is_pending(self) -> bool:
        """Whether the job has not ended yet."""
        return self._state is State.PENDING

    @property
    def status(self) -> JobStatus:
        if not self.is_pending:
            return JobStatus.complete
        return JobStatus.deferred if self._row["due"] > self._row["now"] else JobStatus.queued

    @property
    def message(self) -> Message:
        """The task and its arguments. Without the arguments if they were not kept."""
        job_id, payload = self._row["id"], self._row["payload"]
        try:
            return Message.decode(job_id, payload or b"")
        except PayloadError:
            row = self._row
            return Message(
                job_id,
                row["task"],
                enqueued_at=row["enqueued_at"],
                parent=row["parent"],
                traceparent=row["traceparent"],
            )

    @property
    def success(self) -> bool:
        return self._state is State.DONE

    @property
    def result(self) -> Any:
        """The returned value, or the exception with which the job ended."""
        data = None if self._row["result"] is None else from_json(self._row["result"])
        traceback = self._row["traceback"] or ""
        match self._state:
            case State.FAILED:
                return error_from(data | {"traceback": traceback} if isinstance(data, dict) else data)
            case State.EXPIRED:
                # Encoded and decoded as a result in Redis is, so that both give equal errors.
                return error_from(error_data(JobExpiredError("job expired: it waited longer than it may")))
            case State.DISCARDED:
                had_failed = self._row["error"] is not None
                why = "it had failed, and was discarded" if had_failed else "it waited, and its queue was purged"
                return JobFailed("discarded", f"{why} by hand", traceback)
            case State.ABORTED:
                return asyncio.CancelledError()
            case State.DONE | State.PENDING:
                return data

    @property
    def tries(self) -> int:
        return int(self._row["tries"])

    @property
    def started_at(self) -> datetime | None:
        return _moment(self._row["started_at"])

    @property
    def finished_at(self) -> datetime | None:
        return _moment(self._row["finished_at"])


async def ledger_status(job_id: str, enqueued_at: int | None) -> LedgerStatus | None:
    """The status of the job of this id that was enqueued at this time, or last. None if there is no row or no ledger.

    Raises:
        LedgerAwayError: the database does not answer.
    """
    row = await _query_ledger(lambda ledger: ledger.latest(job_id, enqueued_at), otherwise=None)
    return None if row is None else LedgerStatus(row)


async def abort_pending(job_id: str, enqueued_at: int | None) -> bool:
    """Abort a job that is not in its queue yet.

    Args:
        enqueued_at: as in `ledger_status`.

    Returns:
        Whether there was such a job.

    Raises:
        LedgerAwayError: the database does not answer.
    """
    return await _query_ledger(lambda ledger: ledger.abort(job_id, enqueued_at), otherwise=False)


async def _query_ledger(query: Callable[[Ledger], Awaitable[T]], *, otherwise: T) -> T:
    """The ledger's answer, or `otherwise` if the process has no ledger: then only Redis is asked."""
    if given_default() is None:
        from worker.config import Config  # noqa: PLC0415 - pydantic, for a process that uses the default

        if Config.load().database_url is None:
            return otherwise
    try:
        return await query(default_ledger())
    except NestedWriterError as error:
        raise LedgerAwayError("this scope holds SQLite's write lock: ask before it writes, or after its end") from error
    except (SQLAlchemyError, DbError, LedgerError, OSError) as error:
        if transient(error) is not None or isinstance(error, PoolExhaustedError | OSError):
            raise LedgerAwayError(f"the ledger's database does not answer: {error}") from error
        return otherwise


def _moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else from_milliseconds(milliseconds)

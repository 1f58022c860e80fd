"""``Once``: commit a job's effects in the database only once.

1. A job that has touched the database sets its ledger row done as the last statement of its transaction, on asyncpg in
   one message with the COMMIT. Effects and row are committed together. If the row is final already, another attempt was
   first, and this attempt is rolled back.
2. If the connection is lost in the COMMIT, the ledger is asked on another connection whether the COMMIT happened.
3. A read-only transaction has no effects, so it writes no row. The job is completed like a job without a database.
4. A job that was started before may have committed before its worker died. So the ledger is asked first.
"""

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

from sqlalchemy.exc import DBAPIError

from db import AsyncSession, Database, default_database
from db.scope import Scope
from db.transient import transient
from worker.aio.backoff import Backoff
from worker.engine.execution import Execution
from worker.engine.outcome import Outcome, OutcomeKind
from worker.errors import JobExpiredError, LedgerBusyError
from worker.ledger import FinalRow, Ledger, NothingWrittenError, RowIsFinalError, State, StoredResult

logger = logging.getLogger("worker")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0  # seconds between two queries about a COMMIT


class CompletedBeforeError(Exception):
    """Another attempt has completed this job; this attempt must be rolled back."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class Attempt:
    """One attempt of a job whose effects may happen twice."""

    is_completed = False
    """Whether the ledger's statement has run: from then on the ledger knows whether the transaction was committed."""

    async def completed_before(self) -> Outcome | None:
        """Return the outcome of an earlier attempt, if the ledger has one."""
        return None

    async def complete(self, work: Scope, result: bytes) -> None:
        """Write the job's row in the attempt's own transaction. Only the COMMIT may follow.

        Raises:
            CompletedBeforeError: another attempt was first.
            LedgerBusyError: another attempt's transaction may be first.
        """

    async def resolve_commit(self) -> Outcome | None:
        """Find out whether a COMMIT that lost its connection happened: its outcome, or None if it did not."""
        return None

    async def explained(self, error: BaseException) -> BaseException:
        """The error that says why the attempt was rolled back: `error`, or one that explains it."""
        return error


class Once:
    """Creates attempts whose effects are committed once."""

    def __init__(self, ledger: Ledger | None) -> None:
        self._ledger = ledger

    def attempt(self, execution: Execution) -> Attempt:
        """A new attempt of a job."""
        if self._ledger is None or not execution.task.options.once:
            return Attempt()
        return _OnceAttempt(self._ledger, execution)

    async def complete_all(self, work: Scope, results: Mapping[Execution, bytes]) -> bool:
        """Write the rows of a chunk's jobs in the chunk's own transaction. Only the COMMIT may follow.

        Returns:
            Whether the rows are written. If not, the effects of the jobs may happen twice, or there are none.

        Raises:
            RowIsFinalError: one of the jobs was completed by another attempt.
            LedgerBusyError: another attempt's transaction may be first.
        """
        once = next(iter(results)).task.options.once
        if self._ledger is None or not once or not await has_effects(work):
            return False
        keep_arguments = self._ledger.keep_arguments
        rows = [done_row(one, result, keep_arguments=keep_arguments) for one, result in results.items()]
        try:
            await self._ledger.mark_all_done(await work.session(_database_of_effects(work)), rows)
        except NothingWrittenError:
            return False
        return True


class _OnceAttempt(Attempt):
    """One attempt of a job whose effects are committed once."""

    def __init__(self, ledger: Ledger, execution: Execution) -> None:
        self._ledger = ledger
        self._execution = execution
        self._result: bytes | None = None
        self._is_in_commit = False
        """Whether the row is written by the COMMIT, or by a statement that fails as it would."""

    async def completed_before(self) -> Outcome | None:
        self._execution.keep_lease()
        message = self._execution.message
        stored = await self._ledger.look_up(message.job_id, message.enqueued_at)
        return None if stored is None else outcome_of(stored)

    async def complete(self, work: Scope, result: bytes) -> None:
        if not await has_effects(work):
            return
        self._result = result
        session = await work.session(_database_of_effects(work))
        if isinstance(session, AsyncSession) and len(work.scoped_sessions) == 1:
            self._is_in_commit = True
            if await self._ledger.mark_done_in_commit(session, self._final_row):
                self.is_completed = True
                return
            self._is_in_commit = False
        try:
            stored = await self._ledger.mark_done(session, self._final_row)
        except NothingWrittenError:
            return
        earlier = None if stored is None else outcome_of(stored)
        if earlier is not None:
            raise CompletedBeforeError(earlier)
        self.is_completed = True

    async def explained(self, error: BaseException) -> BaseException:
        if not (self._is_in_commit and isinstance(error, DBAPIError)):
            return error
        explained = self._ledger.why_not_committed(error) or error
        return await self._earlier(explained) if isinstance(explained, RowIsFinalError) else explained

    async def _earlier(self, error: RowIsFinalError) -> CompletedBeforeError | LedgerBusyError:
        """The error with the outcome that the ledger has instead of this attempt's."""
        try:
            earlier = await self.completed_before()
        except Exception as failure:  # noqa: BLE001 - the attempt is rolled back, and whatever failed may work later
            busy = LedgerBusyError(f"{error}, and could not be read: {failure}")
            busy.__cause__ = failure
            return busy
        return (
            LedgerBusyError(f"{error}, and was gone when it was read")
            if earlier is None
            else CompletedBeforeError(earlier)
        )

    async def resolve_commit(self) -> Outcome | None:
        logger.warning(
            "job %s: the connection was lost in the COMMIT; asking the ledger whether it happened",
            self._execution.job_id,
        )
        while True:
            try:
                return await self._poll_ledger()
            except asyncio.CancelledError as cancellation:
                stop = self._execution.cancelled_as
                # An abort, or a cancellation by the task's own code, is too late: the attempt may be committed.
                if stop is not None and stop is not OutcomeKind.ABORTED:
                    return Outcome(stop, error=cancellation)  # the next attempt asks the ledger, too

    async def _poll_ledger(self) -> Outcome | None:
        """Ask the ledger until it answers whether the COMMIT happened."""
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        while True:
            self._execution.keep_lease()
            try:
                stored = await self._ledger.was_done(self._final_row)
            except Exception as error:
                if transient(error) is None and not isinstance(error, LedgerBusyError | TimeoutError):
                    raise
                await asyncio.sleep(backoff.next())
            else:
                return None if stored is None else _confirmed(outcome_of(stored))

    @property
    def _final_row(self) -> FinalRow:
        return done_row(self._execution, self._result, keep_arguments=self._ledger.keep_arguments)


async def has_effects(work: Scope) -> bool:
    """Whether an attempt has touched the database. Its pending statements are sent first."""
    if work.is_unused:
        return False
    await work.prepare()
    return work.has_touched


def done_row(execution: Execution, result: bytes | None, *, keep_arguments: bool) -> FinalRow:
    """The ledger row of an attempt, as done."""
    message = execution.message
    return FinalRow(
        message.job_id,
        message.enqueued_at,
        message.task,
        execution.queue,
        State.DONE,
        # A job that was enqueued in a transaction has its payload in its pending row.
        payload=execution.claim.payload if keep_arguments and not message.in_ledger else None,
        result=result,
        tries=execution.claim.tries + 1,
        started_at=execution.started_at,
        parent=message.parent,
        traceparent=message.traceparent,
    )


def _database_of_effects(work: Scope) -> Database[Any]:
    """The default database, through the driver whose transaction has the effects. With two, the one that commits last.

    A plain function's `Session` uses another connection than the `AsyncSession`. The row must be on the connection that
    has the effects, to be committed with them. A further `Database` with the default's URL counts only where the
    default one has no transaction: it may be for reading.
    """
    default = default_database()
    begun: list[Database[Any]] = [unit.database for unit in work.scoped_sessions if unit.session.in_transaction()]
    twins = [database for database in begun if database.is_twin_of(default)]
    return (twins or [database for database in begun if database.is_same_as(default)] or [default])[-1]


def outcome_of(stored: StoredResult) -> Outcome | None:
    """The outcome of a job that is over; None for a job that is to run."""
    match stored.state:
        case State.DONE:
            return Outcome(OutcomeKind.DUPLICATE, result=stored.result or b"null", in_ledger=True)
        case State.ABORTED | State.DISCARDED:
            return Outcome(OutcomeKind.ABORTED, error=asyncio.CancelledError(f"job was {stored.state}"), in_ledger=True)
        case State.EXPIRED:
            error = JobExpiredError("job expired: it waited longer than it may")
            return Outcome(OutcomeKind.EXPIRED, error=error, in_ledger=True)
        case State.PENDING | State.FAILED:
            return None


def _confirmed(outcome: Outcome | None) -> Outcome | None:
    """The outcome of this attempt, as the ledger confirmed it."""
    if outcome is not None and outcome.kind is OutcomeKind.DUPLICATE:
        return Outcome(OutcomeKind.COMPLETED, result=outcome.result, in_ledger=True)
    return outcome

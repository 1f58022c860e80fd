"""``Once``: what keeps a job's effects in the database from happening twice.

1. A job that has touched the database sets its ledger row done, as its transaction's last statement: effects and row
   are committed as one. Where the row is final already, another attempt was first, and this one is rolled back.
2. If the connection is lost in the COMMIT, the ledger is asked on another connection whether the COMMIT happened.
3. A read-only transaction has no effects: it writes no row. The job is completed as one without a database.
4. A job that was started before may have committed before its worker died: the ledger is asked first.
"""

import asyncio
import logging
from typing import Any

from db import Database, default_database
from db.scope import Scope
from db.transient import transient
from worker.aio.backoff import Backoff
from worker.engine.execution import Execution
from worker.engine.outcome import Outcome, OutcomeKind
from worker.errors import JobExpiredError, LedgerBusyError
from worker.ledger import FinalRow, Ledger, NothingWrittenError, State, StoredResult

logger = logging.getLogger("worker")

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 2.0  # seconds between two questions about a COMMIT


class CompletedBeforeError(Exception):
    """Another attempt has completed this job; what this one did is to be rolled back."""

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
            SettledBeforeError: another attempt was first.
            LedgerBusyError: another attempt's transaction may be first.
        """

    async def resolve_commit(self) -> Outcome | None:
        """Find out whether a COMMIT that lost its connection happened: its outcome, or None if it did not."""
        return None


class Once:
    """Makes attempts whose effects happen once."""

    def __init__(self, ledger: Ledger | None) -> None:
        self._ledger = ledger

    def attempt(self, execution: Execution) -> Attempt:
        """A new attempt of a job."""
        if self._ledger is None or not execution.task.options.once:
            return Attempt()
        return _OnceAttempt(self._ledger, execution)


class _OnceAttempt(Attempt):
    """One attempt of a job whose effects happen once."""

    def __init__(self, ledger: Ledger, execution: Execution) -> None:
        self._ledger = ledger
        self._execution = execution
        self._result: bytes | None = None

    async def completed_before(self) -> Outcome | None:
        self._execution.keep_lease()
        message = self._execution.message
        known = await self._ledger.look_up(message.job_id, message.enqueued_at)
        return None if known is None else outcome_of(known)

    async def complete(self, work: Scope, result: bytes) -> None:
        if work.is_unused:
            return
        await work.prepare()
        if not work.has_touched:
            return
        self._result = result
        session = await work.session(_database_of_effects(work))
        try:
            known = await self._ledger.mark_done(session, self._ending)
        except NothingWrittenError:
            return
        earlier = None if known is None else outcome_of(known)
        if earlier is not None:
            raise CompletedBeforeError(earlier)
        self.is_completed = True

    async def resolve_commit(self) -> Outcome | None:
        logger.warning("%s: the connection was lost in the COMMIT; the ledger is asked", self._execution.job_id)
        while True:
            try:
                return await self._answer()
            except asyncio.CancelledError as cancellation:
                stop = self._execution.cancelled_as
                # An abort comes too late for what may be committed, and so does a cancellation of the body's own.
                if stop is not None and stop is not OutcomeKind.ABORTED:
                    return Outcome(stop, error=cancellation)  # the next attempt asks the ledger, too

    async def _answer(self) -> Outcome | None:
        """Ask until the database says what became of the COMMIT."""
        backoff = Backoff(_FIRST_PAUSE, _LONGEST_PAUSE)
        while True:
            self._execution.keep_lease()
            try:
                known = await self._ledger.was_done(self._ending)
            except Exception as unknown:
                if transient(unknown) is None and not isinstance(unknown, LedgerBusyError | TimeoutError):
                    raise
                await asyncio.sleep(backoff.next())
            else:
                return None if known is None else _as_own(outcome_of(known))

    @property
    def _ending(self) -> FinalRow:
        """The row of an attempt that is done."""
        execution, message = self._execution, self._execution.message
        return FinalRow(
            message.job_id,
            message.enqueued_at,
            message.task,
            execution.queue,
            State.DONE,
            result=self._result,
            tries=execution.claim.tries + 1,
            started_at=execution.started_at,
        )


def _database_of_effects(work: Scope) -> Database[Any]:
    """The default database, through the driver whose transaction has the effects; of two of them the last to commit.

    A plain function's `Session` is another connection than the `AsyncSession`: a row there would not be one with them.
    """
    default = default_database()
    begun = [
        unit.database
        for unit in work.scoped_sessions
        if unit.session.in_transaction() and unit.database.is_same_as(default)
    ]
    return begun[-1] if begun else default


def outcome_of(known: StoredResult) -> Outcome | None:
    """The outcome of a job that is over; None for a job that is to run."""
    match known.state:
        case State.DONE:
            return Outcome(OutcomeKind.DUPLICATE, result=known.result or b"null", in_ledger=True)
        case State.ABORTED | State.DISCARDED:
            return Outcome(OutcomeKind.ABORTED, error=asyncio.CancelledError(f"it was {known.state}"), in_ledger=True)
        case State.EXPIRED:
            error = JobExpiredError("job expired: it waited longer than it may")
            return Outcome(OutcomeKind.EXPIRED, error=error, in_ledger=True)
        case State.PENDING | State.FAILED:
            return None


def _as_own(outcome: Outcome | None) -> Outcome | None:
    """The outcome of this very attempt, which the ledger has confirmed."""
    if outcome is not None and outcome.kind is OutcomeKind.DUPLICATE:
        return Outcome(OutcomeKind.COMPLETED, result=outcome.result, in_ledger=True)
    return outcome

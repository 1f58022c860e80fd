"""``PayloadRecovery``: read a claimed job from the ledger if Redis has lost its payload, or it cannot be read."""

from sqlalchemy.exc import DBAPIError

from db.transient import is_refused
from worker.engine.execution import UNREAD, Execution
from worker.engine.pickles import glimpse
from worker.ledger import Ledger, RelayRow
from worker.message import Message


class PayloadRecovery:
    """Recovers payloads from the ledger.

    Args:
        ledger: None means that there is no ledger, and nothing is recovered.
    """

    def __init__(self, ledger: Ledger | None) -> None:
        self._ledger = ledger

    async def recover(self, execution: Execution) -> None:
        """Set the payload from the job's pending row, unless the job has expired.

        Raises:
            DBAPIError, OSError: the database is away.
        """
        if execution.claim.unread:
            return
        row = await self._pending_row(execution)
        execution.keep_lease()  # the database may have taken long
        if row is not None and not row.expired:
            execution.claim = execution.claim._replace(payload=row.payload)

    async def identify(self, execution: Execution) -> None:
        """Set the message of an unreadable job from its pending row, or else from the readable part of a pickle.

        So the job's outcome makes that row final, or writes a row that keeps the payload.

        Raises:
            DBAPIError, OSError: the database is away.
        """
        row = await self._pending_row(execution)
        if row is not None:
            execution.message = Message(row.id, row.task, (), {}, row.enqueued_at, in_ledger=True)
        elif execution.claim.payload is not None:
            task, enqueued_at = glimpse(execution.claim.payload)
            execution.message = Message(
                execution.job_id,
                UNREAD.task if task is None else task,
                enqueued_at=execution.started_at if enqueued_at is None else enqueued_at,
            )

    async def _pending_row(self, execution: Execution) -> RelayRow | None:
        if self._ledger is None:
            return None
        try:
            return await self._ledger.pending(execution.job_id)
        except DBAPIError as error:
            if is_refused(error):  # no row can have such an id
                return None
            raise

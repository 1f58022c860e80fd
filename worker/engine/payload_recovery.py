"""``PayloadRecovery``: what the ledger knows of a claimed job whose payload is lost in Redis, or cannot be read."""

from sqlalchemy.exc import DBAPIError

from db.transient import is_refused
from worker.engine.execution import Execution
from worker.ledger import Ledger, RelayRow
from worker.message import Message


class PayloadRecovery:
    """Recovers payloads.

    Args:
        ledger: None: there is none, and nothing is recovered.
    """

    def __init__(self, ledger: Ledger | None) -> None:
        self._ledger = ledger

    async def recover(self, execution: Execution) -> None:
        """Give the job the payload that the ledger has, unless the job has expired.

        Raises:
            DBAPIError, OSError: the database is away.
        """
        if execution.claim.unread:
            return
        row = await self._pending_row(execution)
        if row is not None and not row.expired:
            execution.claim = execution.claim._replace(payload=row.payload)

    async def identify(self, execution: Execution) -> None:
        """Give a job that cannot be read the part of its message that its pending row has.

        So the job's outcome makes that row final.

        Raises:
            DBAPIError, OSError: the database is away.
        """
        row = await self._pending_row(execution)
        if row is not None:
            execution.message = Message(row.id, row.task, (), {}, row.enqueued_at, in_ledger=True)

    async def _pending_row(self, execution: Execution) -> RelayRow | None:
        if self._ledger is None:
            return None
        try:
            return await self._ledger.pending(execution.job_id)
        except DBAPIError as error:
            if is_refused(error):  # no row can have such an id
                return None
            raise

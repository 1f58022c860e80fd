"""The ledger: the outbox and the completion record of jobs in one table, beside the application's own data.

A job that is enqueued in a transaction is a row of that transaction, so it exists if and only if that transaction
commits. A job that succeeds sets its row done in its own transaction. So its effects happen once, whatever process is
killed.

All of `worker` but `broker` and `aio` may import it. No other package may write job rows, and nothing here may talk to
Redis.
"""

from worker.ledger.ledger import Ledger, NothingWrittenError, RowIsFinalError
from worker.ledger.rows import FinalRow, IdRange, RelayRow, StoredResult
from worker.ledger.table import State, table

__all__ = [
    "FinalRow",
    "IdRange",
    "Ledger",
    "NothingWrittenError",
    "RelayRow",
    "RowIsFinalError",
    "State",
    "StoredResult",
    "table",
]

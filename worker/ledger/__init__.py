"""The ledger: a table of job rows beside the effects that they stand for.

A job that is enqueued in a transaction is a row of that transaction; one that has run is a row of its own. So a job
exists if and only if what enqueued it was committed, and its effects happen once, whatever is killed in between.

All of `worker` but `broker` and `aio` may import it. Nothing else may write job rows, and nothing here may speak Redis.
"""

from worker.ledger.ledger import Ledger, NothingWrittenError
from worker.ledger.rows import FinalRow, RelayRow, StoredResult
from worker.ledger.table import State, table

__all__ = ["FinalRow", "Ledger", "NothingWrittenError", "RelayRow", "State", "StoredResult", "table"]

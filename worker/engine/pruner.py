"""``Pruner``: delete the rows of jobs that ended long ago.

The pruner deletes few rows at a time, in short transactions. After each it rests twice as long as the transaction
took, so it needs a third of one connection's time at most. It deletes fewer at a time if the rows are so large that the
database cancels the statement for its duration. Any number of workers prune at once: each skips the rows that another
one is deleting.
"""

import asyncio
import logging
import random
import time

from sqlalchemy.exc import DBAPIError

from db.text.plural import plural
from db.transient import sqlstate
from worker.ledger import Ledger

logger = logging.getLogger("worker")

_INTERVAL = 300.0  # seconds between two prunings, with jitter, so that workers that started together take turns
_BATCH = 1000  # rows a transaction
_SHRINK = 10  # the batch is divided by this after a statement that took too long
# Of the time that a batch takes. One worker deletes 32,000 rows a second of a table of 10 million, on two busy cores.
# With a fixed pause of 0.2 s it deleted 4,900, fewer than busy workers add.
_REST_FOR_BATCH = 2
_LONGEST_REST = 0.2  # seconds
_QUERY_CANCELED = "57014"  # SQLSTATE, also of a statement that took too long


class Pruner:
    """Deletes the rows of jobs that ended long ago.

    Args:
        keep: seconds that a row is kept after its job has ended.
    """

    def __init__(self, ledger: Ledger, keep: float) -> None:
        self._ledger = ledger
        self._keep = round(keep * 1000)
        self._batch = _BATCH

    async def run(self) -> None:
        """Prune at once, as some workers live only for a short time, and then at intervals, for ever."""
        while True:
            await self._prune()
            await asyncio.sleep(_INTERVAL * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret

    async def _prune(self) -> None:
        deleted, is_done, after = 0, False, 0
        while not is_done:
            began = time.monotonic()
            try:
                latest, after = await self._ledger.prune(self._keep, self._batch, after)
            except DBAPIError as error:
                if self._batch == 1 or sqlstate(error) != _QUERY_CANCELED:
                    raise
                self._batch = max(self._batch // _SHRINK, 1)
            else:
                deleted += latest
                is_done = latest < self._batch
            if not is_done:
                await asyncio.sleep(min((time.monotonic() - began) * _REST_FOR_BATCH, _LONGEST_REST))
        if deleted:
            logger.info("deleted %s of jobs that ended long ago", plural(deleted, "row"))

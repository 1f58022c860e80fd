"""``Pruner``: rows of jobs that have long been over -> gone.

It deletes a few rows at a time, in short transactions with pauses between them, so that other work does not notice. It
deletes fewer if the rows are so large that the database ends the statement. Any number of workers prune: each passes
over the rows that another one is deleting.
"""

import asyncio
import logging
import random

from sqlalchemy.exc import DBAPIError

from db.transient import sqlstate
from worker.ledger import Ledger

logger = logging.getLogger("worker")

_INTERVAL = 300.0  # seconds between two looks, with jitter, so that workers that started together take turns
_BATCH = 1000  # rows a transaction
_FEWER = 10  # times as few, after a statement that took too long
_PAUSE = 0.2  # seconds between two transactions
_TOOK_TOO_LONG = "57014"


class Pruner:
    """Deletes them.

    Args:
        keep: seconds that a row is kept after its job has ended.
    """

    def __init__(self, ledger: Ledger, keep: float) -> None:
        self._ledger = ledger
        self._keep = round(keep * 1000)
        self._batch = _BATCH

    async def run(self) -> None:
        """Look at once, as some workers live for a short time only, and then now and then, for ever."""
        while True:
            await self._prune()
            await asyncio.sleep(_INTERVAL * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret

    async def _prune(self) -> None:
        pruned, is_done = 0, False
        while not is_done:
            try:
                latest = await self._ledger.prune(self._keep, self._batch)
            except DBAPIError as error:
                if self._batch == 1 or sqlstate(error) != _TOOK_TOO_LONG:
                    raise
                self._batch = max(self._batch // _FEWER, 1)
            else:
                pruned += latest
                is_done = latest < self._batch
            if not is_done:
                await asyncio.sleep(_PAUSE)
        if pruned:
            logger.info("%d rows of jobs that were over are deleted", pruned)

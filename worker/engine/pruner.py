"""``Pruner``: rows of jobs that have long been over -> gone.

A few at a time, in short transactions with pauses between them: nobody is to notice. Any number of workers do it, each
leaving the rows to the others that they are at.
"""

import asyncio
import logging
import random

from worker.ledger import Ledger

logger = logging.getLogger("worker")

_INTERVAL = 300.0  # seconds between two looks, with jitter, so that workers that started together take turns
_BATCH = 1000  # rows a transaction
_PAUSE = 0.2  # seconds between two transactions


class Pruner:
    """Deletes them.

    Args:
        keep: seconds that a row is kept after its job has ended.
    """

    def __init__(self, ledger: Ledger, keep: float) -> None:
        self._ledger = ledger
        self._keep = round(keep * 1000)

    async def run(self) -> None:
        """Look at once, as some workers live for a short time only, and then now and then, for ever."""
        while True:
            await self._prune()
            await asyncio.sleep(_INTERVAL * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret

    async def _prune(self) -> None:
        pruned = batch = await self._ledger.prune(self._keep, _BATCH)
        while batch == _BATCH:
            await asyncio.sleep(_PAUSE)
            batch = await self._ledger.prune(self._keep, _BATCH)
            pruned += batch
        if pruned:
            logger.info("%d rows of jobs that were over are deleted", pruned)

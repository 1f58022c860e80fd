"""Waiting until nothing waits any more."""

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.chaos.faults import LEASE
from tests.chaos.stage import QUEUES, Stage

_STALLED = 90.0  # seconds without any change after which nothing more will happen
_LOOK = 0.5  # seconds between two looks
_NEWS = 5.0  # seconds between two lines of progress


class Waiting(NamedTuple):
    """What is not done yet."""

    pending: int
    """Rows of the ledger."""
    queued: int
    """Jobs in Redis that wait or run."""
    effects: int
    """So far: while they come, the rest may, too."""

    @property
    def is_over(self) -> bool:
        return not self.pending and not self.queued

    def __str__(self) -> str:
        return f"{self.pending} rows pending, {self.queued} jobs queued, {self.effects} effects"


async def settle(stage: Stage, say: Callable[[str], None]) -> Waiting:
    """Wait until no row is pending and no job is queued, for as long as anything changes; what was left at last.

    It must stay so for longer than a lease: only then does nobody have a job that Redis has forgotten.
    """
    last, changed, said = await look(stage), time.monotonic(), 0.0
    while True:
        now = time.monotonic()
        if now - changed > (LEASE + 1 if last.is_over else _STALLED):
            return last
        if now - said > _NEWS and not last.is_over:
            say(f"settling: {last}")
            said = now
        await asyncio.sleep(_LOOK)
        latest = await look(stage)
        if latest != last:
            last, changed = latest, time.monotonic()


async def look(stage: Stage) -> Waiting:
    """What waits now."""
    async with stage.database() as database, stage.redis() as redis:
        pending = await database.fetchval("SELECT count(*) FROM tandem_jobs WHERE state = 'pending'")
        effects = await database.fetchval("SELECT count(*) FROM effect")
        queued = sum([await redis.zcard(queue) for queue in QUEUES])
    return Waiting(pending, queued, effects)

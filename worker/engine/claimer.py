"""``Claimer``: free slots -> claimed jobs.

1. One round trip a queue claims as many jobs as there are free slots, the first queue first, but at most half of all
   slots: while one half runs, the next is on its way. Slots that are about to become free share it.
2. Every few claims a lower queue comes first, so that a busy queue does not starve it.
3. With nothing due it sleeps until a job is queued or falls due. It also polls: stock producers send no notice.
4. While Redis is away leases end although no worker has died. After an outage heartbeats come first, so that jobs which
   still run are not claimed from their workers.
5. Jobs whose workers have died again and again run one at a time. So one that kills its workers does not take others
   along, until they all count as poison.
6. Claimed jobs are in the keeper's table before they start: a body that keeps the interpreter at once loses no lease.
   A claim that is answered late is renewed before its jobs start. Jobs that are lost by then go back unstarted, at no
   cost.
"""

import asyncio
import contextlib
import itertools
import math
import secrets
import time
from collections.abc import Callable, Iterable, Sequence

from worker.aio.batching import coalesce
from worker.broker.broker import Broker
from worker.broker.errors import ResponseError
from worker.broker.records import Claim, Completion
from worker.engine.slots import Slots
from worker.keeper.table import LeaseTable, Place

_POLL = 0.5  # seconds, as arq polls
_WAIT = 0.1  # seconds between two looks at whether the heartbeat is back
_TRUCE = 1.0  # seconds: a few heartbeats
_TURN = 8  # every so many claims another queue comes first

_LATE = 0.25  # of a lease
Start = Callable[[Sequence[Claim], str, str, Sequence[Place]], None]


class Claimer:
    """Claims jobs for free slots.

    Args:
        queues: their names, the most urgent first.
        slots: for the jobs that it claims.
        lease: seconds that a claim holds without a renewal.
        start: gets the jobs of each claim, with their queue, token and places.
        table: the memory that the keeper reads.
        longest_lease: seconds for which the lease of a job is kept that has not begun.
        keeps_leases: whether the leases of what it runs are known to hold.
    """

    def __init__(
        self,
        broker: Broker,
        queues: Sequence[str],
        *,
        slots: Slots,
        lease: float,
        start: Start,
        table: LeaseTable,
        longest_lease: float,
        keeps_leases: Callable[[], bool] = lambda: True,
    ) -> None:
        self._broker = broker
        self._queues = tuple(queues)
        self._lease = round(lease * 1000)
        self._late = lease * _LATE
        self._start = start
        self._table = table
        self._longest_lease = longest_lease
        self._keeps_leases = keeps_leases
        self._stopped = self._begun = False
        self._look = asyncio.Event()
        self._tokens = (f"{secrets.token_hex(8)}{number:012x}" for number in itertools.count())
        self._rounds = itertools.count()
        self._most_at_once = math.ceil(slots.total / 2)
        self._slots = slots
        slots.on_free = self._look.set
        self.last_answer = 0.0
        """Time of the last answer to a claim, by the monotonic clock."""

    def stop(self) -> None:
        """Claim nothing more. What a claim on its way brings is still started."""
        self._stopped = True
        self._look.set()

    async def run(self) -> None:
        """Claim until stopped."""
        if self._stopped:  # one that failed is run again, and by then there may be nothing to do
            return
        if self._begun:
            await self._broker.ping()
            await asyncio.sleep(_TRUCE)
        self._begun = True
        async with contextlib.AsyncExitStack() as listening:
            for name in self._queues:
                await listening.enter_async_context(self._broker.woken(name, self._look))
            while not self._stopped:
                self._look.clear()
                pause = await self._claim_together() if self._slots.free > 0 else None
                if pause != 0:
                    await self._until_worth_a_look(pause)

    async def _claim_together(self) -> float:
        """Claim for the slots that are free within the next turns of the loop, too."""
        await coalesce(lambda: self._slots.free >= self._most_at_once)
        return await self._claim()

    async def _claim(self) -> float:
        """Fill free slots; seconds until it is worth claiming again."""
        if not self._keeps_leases():
            return _WAIT
        pause = _POLL
        refused: ResponseError | None = None
        for name in self._in_turn():
            if self._stopped:
                break
            token = next(self._tokens)
            wanted = min(self._slots.free, self._most_at_once)
            asked = time.monotonic()
            try:
                claims = await self._broker.claim(name, token, self._lease, wanted, self._slots.free_suspects)
            except ResponseError as error:  # what is wrong with one queue must not keep the others waiting
                refused = error
                continue
            self.last_answer = time.monotonic()
            if claims.jobs:
                await self._start_all(claims.jobs, name, token, asked)
            if len(claims.jobs) == wanted:
                return 0.0
            if claims.next_due is not None:
                pause = min(pause, claims.next_due)
        if refused is not None:
            raise refused
        return pause

    async def _start_all(self, claims: list[Claim], queue: str, token: str, asked: float) -> None:
        """Start claimed jobs."""
        limit = time.monotonic() + self._longest_lease
        places = self._table.add(self._queues.index(queue), token, [claim.raw_id for claim in claims], limit)
        # Only now: what has been in the table since before this look is renewed in time, whatever stands still.
        if time.monotonic() - asked > self._late:
            claims, places = await self._still_held(claims, queue, token, places)
        self._slots.take(claims)
        self._start(claims, queue, token, places)

    async def _still_held(
        self, claims: list[Claim], queue: str, token: str, places: list[Place]
    ) -> tuple[list[Claim], list[Place]]:
        """Of a claim that was answered late, the jobs whose leases have just been renewed. The others are put back."""
        try:
            held = await self._renewed(claims, queue, token)
            lost = [claim for claim, is_held in zip(claims, held, strict=True) if not is_held]
            if lost:
                back = [Completion(claim.raw_id, token, "back", claim.payload or b"") for claim in lost]
                await self._broker.finish(queue, back)
        except BaseException:
            _forget(places)
            raise
        _forget(place for place, is_held in zip(places, held, strict=True) if not is_held)
        return list(itertools.compress(claims, held)), list(itertools.compress(places, held))

    async def _renewed(self, claims: list[Claim], queue: str, token: str) -> list[bool]:
        """Renew the leases of a claim until Redis answers in time; which of them were still ours."""
        raw_ids = [claim.raw_id for claim in claims]
        while True:
            asked = time.monotonic()
            held = await self._broker.renew(queue, token, self._lease, raw_ids)
            if time.monotonic() - asked <= self._late:
                return held

    def _in_turn(self) -> tuple[str, ...]:
        """The queues in the order of this round."""
        turn, rest = divmod(next(self._rounds), _TURN)
        if rest or len(self._queues) == 1:
            return self._queues
        first = turn % len(self._queues)
        return (self._queues[first], *self._queues[:first], *self._queues[first + 1 :])

    async def _until_worth_a_look(self, pause: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._look.wait()


def _forget(places: Iterable[Place]) -> None:
    """Take jobs out of the keeper's table."""
    for batch, word in places:
        batch.end(word)

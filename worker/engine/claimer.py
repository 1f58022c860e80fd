"""``Claimer``: claim due jobs for free slots.

1. One round trip claims as many jobs as there are free slots, from the first queue first, but at most half of all
   slots: while one half runs, the next is on its way. Slots that are about to become free share it. In a cluster, where
   each queue may be on another node, each queue takes a round trip.
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
from collections.abc import Callable, Collection, Iterable, Sequence

from worker.aio.batching import coalesce
from worker.broker.broker import Broker
from worker.broker.errors import RedisError, ResponseError
from worker.broker.records import Claim, Completion, QueueClaims
from worker.engine.slots import Slots
from worker.keeper.table import LeaseTable, Place

_POLL = 0.5  # seconds, as arq polls
_HEARTBEAT_POLL = 0.1  # seconds between two checks whether leases are renewed again
_PAUSE_AFTER_OUTAGE = 1.0  # seconds: a few heartbeats
_ROTATION = 8  # claims after which another queue comes first once

_LATE = 0.25  # of a lease: a claim that took longer is renewed before its jobs start
Start = Callable[[Sequence[Claim], str, str, Sequence[Place]], None]


class Claimer:
    """Claims jobs for free slots.

    Args:
        queues: the names of the queues, the most urgent first.
        slots: the slots for claimed jobs.
        lease: seconds that a claim holds without a renewal.
        start: gets the jobs of each claim, with their queue, token and places.
        table: the memory that the keeper reads.
        longest_lease: seconds for which the lease of a job is kept until it begins.
        keeps_leases: whether the leases of all running jobs are known to hold.
        guarded: returns the queues of which nothing may be claimed without a complete epoch: see
            :mod:`worker.engine.relay`.
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
        guarded: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self._broker = broker
        self._queues = tuple(queues)
        self._numbers = {queue: number for number, queue in enumerate(queues)}
        self._lease = round(lease * 1000)
        self._late = lease * _LATE
        self._start = start
        self._table = table
        self._longest_lease = longest_lease
        self._keeps_leases = keeps_leases
        self._guarded = guarded
        self._stopped = self._begun = False
        self.is_quiet = False
        """Whether it claims nothing until `resume` is called."""
        self._wake_up = asyncio.Event()
        self._tokens = (f"{secrets.token_hex(8)}{number:012x}" for number in itertools.count())
        self._rounds = itertools.count()
        self._most_at_once = math.ceil(slots.total / 2)
        self._slots = slots
        slots.on_free = self._wake_up.set
        self.last_answer = 0.0
        """Time of the last answer to a claim, by the monotonic clock."""

    def wake(self) -> None:
        """Claim soon, and do not sleep until the next job is due."""
        self._wake_up.set()

    def be_quiet(self) -> None:
        """Claim nothing more until `resume` is called."""
        self.is_quiet = True

    def resume(self) -> None:
        """Claim again."""
        self.is_quiet = False
        self.wake()

    def stop(self) -> None:
        """Claim nothing more. Jobs of a claim that Redis has not yet answered are still started."""
        self._stopped = True
        self._wake_up.set()

    async def run(self) -> None:
        """Claim until stopped."""
        if self._stopped:  # it may have been stopped before it is run again after a failure
            return
        if self._begun:
            await self._broker.ping()
            await asyncio.sleep(_PAUSE_AFTER_OUTAGE)
        self._begun = True
        async with contextlib.AsyncExitStack() as subscriptions:
            for name in self._queues:
                await subscriptions.enter_async_context(self._broker.woken(name, self._wake_up))
            while not self._stopped:
                self._wake_up.clear()
                may_claim = self._slots.free > 0 and not self.is_quiet
                pause = await self._claim_together() if may_claim else None
                if pause != 0:
                    await self._sleep(pause)

    async def _claim_together(self) -> float:
        """Claim, also for slots that become free within the next iterations of the event loop."""
        await coalesce(lambda: self._slots.free >= self._most_at_once)
        return await self._claim()

    async def _claim(self) -> float:
        """Fill free slots. Return the seconds after which to claim again."""
        if not self._keeps_leases():
            return _HEARTBEAT_POLL
        pause = _POLL
        failure: Exception | None = None
        for names in self._broker.connections.together(self._queue_order()):
            if self._stopped:
                break
            token = next(self._tokens)
            wanted = min(self._slots.free, self._most_at_once)
            asked = time.monotonic()
            try:
                claims = await self._broker.claim_from(
                    names, token, self._lease, wanted, self._slots.free_suspects, self._guarded()
                )
            except ResponseError as error:  # an error of one queue must not delay the others
                failure = error
                continue
            self.last_answer = time.monotonic()
            failure = await self._start_claims(claims, token, asked) or failure
            if sum(map(len, claims.jobs.values())) == wanted and failure is None:
                return 0.0
            if claims.next_due is not None:
                pause = min(pause, claims.next_due)
        if failure is not None:
            raise failure
        return pause

    async def _start_claims(self, claims: QueueClaims, token: str, asked: float) -> Exception | None:
        """Start the jobs of each queue. Return the error of one, which must not keep back the jobs of the others."""
        failure: Exception | None = None if claims.refused is None else ResponseError(claims.refused)
        for queue, jobs in claims.jobs.items():
            try:
                await self._start_all(jobs, queue, token, asked)
            except (RedisError, OSError) as error:
                failure = error
        return failure

    async def _start_all(self, claims: list[Claim], queue: str, token: str, asked: float) -> None:
        """Start claimed jobs. Renew their leases first if the claim was answered late."""
        limit = time.monotonic() + self._longest_lease
        places = self._table.add(self._numbers[queue], token, [claim.raw_id for claim in claims], limit)
        # Checked only now: jobs already in the table are renewed in time, even if this process stalls after the check.
        if time.monotonic() - asked > self._late:
            claims, places = await self._renew_late(claims, queue, token, places)
        self._slots.take(claims)
        self._start(claims, queue, token, places)

    async def _renew_late(
        self, claims: list[Claim], queue: str, token: str, places: list[Place]
    ) -> tuple[list[Claim], list[Place]]:
        """Renew the leases of a late claim. Return the jobs that are still held; the others are put back."""
        try:
            held = await self._renew(claims, queue, token)
            lost = [claim for claim, is_held in zip(claims, held, strict=True) if not is_held]
            if lost:
                back = [Completion(claim.raw_id, token, "back", claim.payload_to_restore) for claim in lost]
                await self._broker.finish(queue, back)
        except BaseException:
            _release(places)
            raise
        _release(place for place, is_held in zip(places, held, strict=True) if not is_held)
        return list(itertools.compress(claims, held)), list(itertools.compress(places, held))

    async def _renew(self, claims: list[Claim], queue: str, token: str) -> list[bool]:
        """Renew the leases of a claim until Redis answers in time. Return, for each job, whether its lease was held."""
        raw_ids = [claim.raw_id for claim in claims]
        while True:
            asked = time.monotonic()
            held = await self._broker.renew(queue, token, self._lease, raw_ids)
            if time.monotonic() - asked <= self._late:
                return held

    def _queue_order(self) -> tuple[str, ...]:
        """Return the queues in the order of this round."""
        rotation, rest = divmod(next(self._rounds), _ROTATION)
        if rest or len(self._queues) == 1:
            return self._queues
        first = rotation % len(self._queues)
        return (self._queues[first], *self._queues[:first], *self._queues[first + 1 :])

    async def _sleep(self, pause: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._wake_up.wait()


def _release(places: Iterable[Place]) -> None:
    """Remove jobs from the keeper's table."""
    for batch, word in places:
        batch.end(word)

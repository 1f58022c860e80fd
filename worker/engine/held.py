"""The jobs that this worker holds: run by the event loop, and kept by the heartbeat's thread.

A lease is kept for as long as one attempt may take, from its start; longer only while the ledger is asked what became
of it, and while the outcome is on its way. A body that never ends must not keep it for ever.
"""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from worker.engine.delivery import Delivery
from worker.engine.outcome import Kind
from worker.exchange import Claim
from worker.keeper.table import NOWHERE, Batch, LeaseTable
from worker.renewal import Held


class Phase(Enum):
    """Where a held job is."""

    RUNNING = "running"
    FINISHING = "finishing"
    """Its outcome is known and on its way to Redis: its lease is renewed, but not taken again if it is lost."""


@dataclass(slots=True, eq=False)
class HeldJob:
    """One claimed job, until Redis knows its outcome."""

    claim: Claim
    queue: str
    token: str
    started_at: int
    """Milliseconds since the epoch."""
    allowance: float
    """Seconds that an attempt may take, with all that is granted to it past its timeout."""
    claimed_at: float = field(default_factory=time.monotonic)
    """By the monotonic clock."""
    batch: Batch | None = None
    """Where the keeper finds it: its batch, and its word there."""
    word: int = NOWHERE
    delivery: Delivery | None = None
    """None: its payload was not read yet, or cannot be."""
    task: "asyncio.Task[None] | None" = None
    phase: Phase = Phase.RUNNING
    job_id: str = field(init=False)
    """The id as text, whatever bytes it is made of."""
    stop: Kind | None = field(default=None, init=False)
    """What becomes of it now that it is cancelled, by `cancel`."""
    _is_known_overdue: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        self.job_id = self.claim.raw_id.decode(errors="backslashreplace")

    @property
    def for_renewal(self) -> Held:
        return Held(self.claim.raw_id, self.token, self.claim.score, self.claim.payload)

    @property
    def limit(self) -> float:
        """When the attempt has taken as long as it may, by the monotonic clock."""
        return (self.claimed_at if self.delivery is None else self.delivery.begun) + self.allowance

    @property
    def is_overdue(self) -> bool:
        """Whether it runs for longer than an attempt may take: its lease is not kept any more."""
        return self.phase is Phase.RUNNING and time.monotonic() >= self.limit

    def became_overdue(self) -> bool:
        """Whether that is so and was not so before; True once for each attempt."""
        before, self._is_known_overdue = self._is_known_overdue, self.is_overdue
        return self._is_known_overdue and not before

    def asked_to_abort(self, abort_at: float | None) -> bool:
        """Whether an abort asked for at `abort_at` means this job, and not an earlier one of the same id."""
        return abort_at is not None and (self.delivery is None or abort_at >= self.delivery.message.enqueued_at)

    def cancel(self, why: Kind) -> None:
        """Cancel the body, once: what it becomes is `why`. Call it on the event loop."""
        if self.stop is not None or self.phase is not Phase.RUNNING or self.task is None:
            return
        self.stop = why
        if self.delivery is not None:
            self.delivery.stop = why
        self.task.cancel()


class HeldJobs:
    """All of them. Only the event loop adds and removes; the heartbeat's thread reads copies."""

    def __init__(self) -> None:
        self._jobs: dict[HeldJob, None] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def __iter__(self) -> Iterator[HeldJob]:
        return iter(list(self._jobs))

    @property
    def running(self) -> int:
        return sum(job.phase is Phase.RUNNING for job in self)

    def add(self, job: HeldJob) -> None:
        self._jobs[job] = None

    def remove(self, job: HeldJob) -> None:
        try:
            del self._jobs[job]
        except KeyError:
            return
        if job.batch is not None:
            job.batch.end(job.word)

    def to_renew(self, queue: str) -> list[HeldJob]:
        return [job for job in self if job.queue == queue and not job.is_overdue]

    @property
    def overdue(self) -> int:
        """How many hold a slot although their attempt has taken longer than it may."""
        return sum(job.is_overdue for job in self)

    def became_overdue(self) -> list[HeldJob]:
        """Those that are so since the last call."""
        return [job for job in self if job.became_overdue()]

    def note_limits(self, table: LeaseTable) -> None:
        """Tell the keeper until when each attempt may take, as some have begun anew. Call it on the event loop."""
        for job in self._jobs:
            if job.delivery is not None:
                table.begin(job.word, job.limit)

    @property
    def longest_allowance(self) -> float:
        """Seconds that an attempt of one that runs may take; 0 where none runs.

        One that is only claimed does not run: whatever keeps it from beginning is not its body.
        """
        running = (job for job in self if job.phase is Phase.RUNNING and job.delivery is not None)
        return max((job.allowance for job in running), default=0.0)

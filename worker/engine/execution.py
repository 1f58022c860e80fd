"""``Execution``: one claimed job, from its claim until Redis has its outcome.

1. The event loop alone writes it. The heartbeat's thread reads it.
2. The lease is kept for as long as one attempt may take, counted from the attempt's start: a body that never ends must
   not keep its lease for ever. It is kept longer only while the ledger is asked for the job's state, and while the
   outcome is being written.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from worker.broker.leases import HeldLease
from worker.broker.records import Claim
from worker.context import JobContext
from worker.engine.limits import Limits
from worker.engine.outcome import OutcomeKind
from worker.keeper.table import Place
from worker.message import Message
from worker.task import Task

UNREAD = Message("", "<unknown>")
"""The message of a job whose payload has not been read."""


class Phase(Enum):
    """The stage of an execution."""

    RUNNING = "running"
    FINISHING = "finishing"
    """The outcome is known and being written. The lease is renewed, but not acquired again if it is lost."""


@dataclass(slots=True, eq=False)
class Execution:
    """One claimed job that this worker holds."""

    claim: Claim
    queue: str
    token: str
    started_at: int
    """Milliseconds since the epoch."""
    limits: Limits
    """The limits of its task; the widest of all tasks until the task is known."""
    place: Place | None = None
    """Its place in the keeper's table."""
    attempt_began: float = field(default_factory=time.monotonic)
    """Start of the time for which the lease is kept (`keep_lease`), by the monotonic clock."""
    message: Message = UNREAD
    """`UNREAD` until the payload is read. For a payload that cannot be read, as much as is known of the job."""
    asyncio_task: "asyncio.Task[None] | None" = None
    phase: Phase = Phase.RUNNING
    cancelled_as: OutcomeKind | None = None
    """The outcome that the job's cancellation asks for. Set by `cancel`, before the cancellation."""
    arq_context: dict[Any, Any] | None = None
    """arq's ``ctx`` of this attempt, which the hooks and the task share. Set only if one of them asks for it."""
    has_run: bool = False
    """Whether its hooks or its body have begun."""
    ended_at: int = 0
    """When its outcome was known, in milliseconds since the epoch."""
    holds_slot: bool = True
    """Whether it holds a slot. The jobs of a chunk hold one together."""
    is_unwritable: bool = False
    """Whether the ledger cannot store its row."""
    recorded: "asyncio.Future[None] | None" = None
    """Done when Redis knows the outcome. Set only if a hook waits for that."""
    job_id: str = field(init=False)
    """The id as text. Bytes that are not UTF-8 are escaped."""
    task: Task[..., Any] = field(init=False, repr=False)
    """Set when the job is admitted."""
    arguments: Mapping[str, Any] = field(init=False, repr=False)
    """Set when the arguments are validated."""
    context: JobContext = field(init=False, repr=False)
    """The job as its task sees it. Set when the job is admitted."""
    returned: Any = field(init=False, repr=False)
    """The value that the body returned. Set only if the job came as a pickle: its result is then a pickle, too."""

    def __post_init__(self) -> None:
        self.job_id = self.claim.raw_id.decode(errors="backslashreplace")

    @property
    def is_read(self) -> bool:
        return self.message is not UNREAD

    @property
    def is_admitted(self) -> bool:
        return hasattr(self, "context")

    @property
    def due(self) -> int:
        """The due time of the job, in milliseconds since the epoch."""
        try:
            return int(float(self.claim.score))
        except (ValueError, OverflowError):  # a producer may write any score, infinity too
            return 0

    @property
    def for_renewal(self) -> HeldLease:
        return HeldLease(self.claim.raw_id, self.token, self.claim.score, self.claim.payload_to_restore)

    def keep_lease(self) -> None:
        """Keep the lease for as long as one attempt may take, from now on.

        Call this at each attempt. Reruns and waiting for the database may take a job much longer than one attempt, but
        each call of its body has the same limit.
        """
        self.attempt_began = time.monotonic()
        if self.place is not None:
            batch, word = self.place
            batch.begin(word, self.lease_limit)

    @property
    def lease_limit(self) -> float:
        """The time until which the lease is kept, by the monotonic clock."""
        return self.attempt_began + self.limits.lease

    @property
    def is_overdue(self) -> bool:
        """Whether it runs for longer than an attempt may take. If so, its lease is no longer kept."""
        return self.phase is Phase.RUNNING and time.monotonic() >= self.lease_limit

    def is_abort_requested(self, abort_at: float | None) -> bool:
        """Whether an abort requested at `abort_at` is for this job, and not for an earlier job with its id."""
        return abort_at is not None and abort_at >= self.message.enqueued_at

    def cancel(self, outcome: OutcomeKind) -> None:
        """Cancel the body, once. The job's outcome is `outcome`. Call it on the event loop."""
        if self.cancelled_as is not None or self.phase is not Phase.RUNNING or self.asyncio_task is None:
            return
        self.cancelled_as = outcome
        self.asyncio_task.cancel()

    def release(self) -> None:
        """Remove the job from the keeper's table: Redis has its outcome, or another worker holds it."""
        if self.place is not None:
            batch, word = self.place
            batch.end(word)
            self.place = None

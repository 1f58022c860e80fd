"""``JobInspector``: all that Redis knows of one job and of its queue, to tell why the job does not run."""

from typing import NamedTuple

from pydantic_core import from_json

from worker.broker.connections import Connections
from worker.broker.keys import Keys
from worker.broker.pauses import QueuePause
from worker.broker.records import PutBack

_STOCK_HOLDER = b"1"  # what a stock arq worker writes as its lease
_TOMBSTONE = b"ended"  # see scripts/finish.lua


class JobInspection(NamedTuple):
    """The state of one job in one queue. Times are milliseconds since the epoch, by the clock of Redis."""

    now: int
    due: float | None
    """The due time; of a running job the end of its lease. None if the job is not in the queue."""
    before: int
    """The number of jobs of the queue with an earlier due time."""
    payload: bytes | None
    result: bytes | None
    lease: bytes | None
    """The lease of the worker that holds the job. None if no worker does."""
    lease_left: int
    """Milliseconds for which the lease holds. Negative if it has no end."""
    abort_at: float | None
    """When an abort was requested."""
    crashes: int
    """The number of claims that were never finished, the present one included."""
    put_back: PutBack | None
    """Why a worker has put the job back, and not claimed it since."""
    put_back_at: int | None
    tries: int
    """The number of failed tries."""
    pause: QueuePause | None
    tasks: frozenset[str]
    """The tasks that live workers of the queue know."""
    is_served: bool
    """Whether a healthy worker serves the queue, perhaps a stock one."""

    @property
    def is_due(self) -> bool:
        return self.due is not None and self.due <= self.now

    @property
    def is_held_by_stock_worker(self) -> bool:
        return self.lease == _STOCK_HOLDER

    @property
    def is_held_back(self) -> bool:
        """Whether the pause of the queue keeps the job from starting, once it is due."""
        if self.pause is None:
            return False
        return self.pause.due_before is None or self.due is None or self.due > self.pause.due_before


class JobInspector:
    """Looks at the jobs of one Redis."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    async def inspect(self, queue: str, job_id: str) -> JobInspection:
        """Read the state of a job, in one round trip."""
        reply = await self._connections.run("inspect", queue, [Keys.of(queue).prefix, job_id])
        now, score, rank, payload, result, holder, left, abort_at, claim, tries, copy, tasks, is_served = reply
        crashes, put_back, put_back_at = _claim(claim)
        return JobInspection(
            now=now,
            due=None if score is None else float(score),
            before=rank or 0,
            payload=payload,
            result=result,
            lease=None if holder == _TOMBSTONE else holder,
            lease_left=left,
            abort_at=None if abort_at is None else float(abort_at),
            crashes=crashes,
            put_back=put_back,
            put_back_at=put_back_at,
            tries=int(tries) if tries is not None and tries.isdigit() else 0,
            pause=None if copy is None else QueuePause.decode(copy),
            tasks=frozenset(task.decode(errors="replace") for task in tasks),
            is_served=bool(is_served),
        )


def _claim(claim: bytes | None) -> tuple[int, PutBack | None, int | None]:
    """The number of unfinished claims, and why and when the job was put back."""
    number, _, rest = (claim or b"").partition(b":")
    if not number.isdigit():
        return 0, None, None
    at, _, note = rest.partition(b":")
    if int(number) or not at.isdigit():
        return int(number), None, None
    try:
        return 0, PutBack(*map(str, from_json(note))), int(at)
    except (ValueError, TypeError):
        return 0, None, None

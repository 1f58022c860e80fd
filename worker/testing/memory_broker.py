"""``MemoryBroker``: queues in the memory of a test, with the meaning that the scripts in Redis have.

1. An id is taken while its job waits or runs, and for as long as its result is kept.
2. Jobs are claimed in the order of their due times; of two with one time the first enqueued one first.
3. Jobs of a transaction are only expected at first. `Jobs` publishes them once their rows are there.
4. It works on every event loop and in every thread, as the broker of an application does.
"""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple, NoReturn

from sqlalchemy import Connection

from worker.broker.broker import Broker
from worker.broker.connections import Connections
from worker.broker.records import ABORTED, Claim, Completion, JobSnapshot, RunNow
from worker.errors import WorkerError
from worker.message import deserialize_trusting
from worker.new_job import NewJob
from worker.testing.clock import Clock

Key = tuple[str, int]
"""A job's id and enqueue time."""

_NOT_IN_A_TEST = (
    "the testing kit has no Redis, and {what} needs one: write this test against a real Redis, without the fixture jobs"
)


class _NoRedis(Connections):
    """Refuses what the kit does not have in memory."""

    def __init__(self) -> None:
        self.url = ""

    @property
    def client(self) -> NoReturn:
        raise WorkerError(_NOT_IN_A_TEST.format(what="a command of its client"))

    @property
    def subscriber(self) -> NoReturn:
        raise WorkerError(_NOT_IN_A_TEST.format(what="a subscription"))

    async def run(self, script: str, queue: str, arguments: Sequence[Any]) -> NoReturn:  # noqa: ARG002 - as in Redis
        raise WorkerError(_NOT_IN_A_TEST.format(what=f"the script {script!r}"))

    def check_name(self, queue: str) -> None:
        """Accept every name."""

    async def open(self) -> None:
        """Open nothing."""

    async def close(self) -> None:
        """Close nothing."""


@dataclass(slots=True, eq=False)
class QueuedJob:
    """A job that waits or runs. Times are milliseconds since the epoch."""

    new: NewJob
    due: int
    order: int
    since: int
    """When it was enqueued, by the clock of the test."""
    expires_at: int | None
    tries: int = 0
    crashes: int = 0
    is_held: bool = False
    """Whether a worker runs it, or died while it ran it."""
    is_aborted: bool = False
    is_committed: bool = True
    """Whether a worker could see its row. It cannot in a transaction of a session that the test holds open."""

    @property
    def key(self) -> Key:
        return self.new.id, self.new.enqueued_at


class Expected(NamedTuple):
    """A job of a transaction."""

    job: NewJob
    since: int
    """When it was enqueued, by the clock of the test, in milliseconds since the epoch."""
    connection: Connection | None
    """The connection that has the transaction. None: a scope has it."""


class MemoryBroker(Broker):
    """The broker of a test.

    Args:
        name: the queue of jobs whose task names no queue.
        max_payload: the most bytes that the arguments of one job may have.
    """

    def __init__(self, clock: Clock, *, name: str, max_payload: int) -> None:
        self.name = name
        self.max_payload = max_payload
        self.url = ""
        self.connections = _NoRedis()
        self._pauses: Counter[str] = Counter()
        self.after_commit: Callable[[], Awaitable[None]] = _nothing
        """Awaited after each COMMIT that publishes jobs, and after each enqueue outside a transaction."""
        self.run_aborted: Callable[[QueuedJob], Awaitable[None]] = _nothing_of
        """Awaited when the abort of a waiting job is requested. It ends the job."""
        self._clock = clock
        self._lock = threading.RLock()
        self._order = count()
        self._jobs: dict[str, dict[str, QueuedJob]] = {}
        self._results: dict[str, tuple[bytes, int]] = {}
        self._aborted: dict[Key, bytes] = {}
        self._expected: dict[Key, Expected] = {}
        self._ended: dict[str, list[asyncio.Event]] = {}
        self.known: dict[Key, NewJob] = {}
        """Every job that was published."""

    # What an application calls.

    def expect(self, jobs: Sequence[NewJob], connection: Any = None) -> None:
        with self._lock:
            for job in jobs:
                self._expected[job.id, job.enqueued_at] = Expected(job, self._clock.now, connection)

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[bool]:
        with self._lock:
            added = [not self._is_taken(job) and self._put(job, self._clock.now) for job in jobs]
        await self.after_commit()
        return added

    async def publish(self, jobs: Sequence[NewJob]) -> list[bool]:
        with self._lock:
            added = [self._publish(job, self._clock.now) for job in jobs]
        await self.after_commit()
        return added

    async def exists(self, queue: str, job_ids: Sequence[str]) -> list[bool]:
        with self._lock:
            return [job_id in self._jobs.get(queue, {}) for job_id in job_ids]

    async def status(self, queue: str, job_id: str, enqueued_at: int | None = None) -> JobSnapshot:
        with self._lock:
            job = self._jobs.get(queue, {}).get(job_id)
            payload = None if job is None or self._has_expired(job) else job.new.payload
            set_aside = None if enqueued_at is None else self._aborted.get((job_id, enqueued_at))
            return JobSnapshot(
                payload,
                self._result(job_id),
                in_progress=job is not None and job.is_held,
                due=None if job is None else float(job.due),
                now=float(self._clock.now),
                set_aside=set_aside,
            )

    async def abort(self, queue: str, job_id: str, enqueued_at: int | None = None) -> bool:
        with self._lock:
            job = self._jobs.get(queue, {}).get(job_id)
            if job is None or enqueued_at not in (None, job.new.enqueued_at):
                return False
            job.is_aborted = True
            is_waiting = not job.is_held
        if is_waiting:
            await self.run_aborted(job)
        return True

    async def run_now(self, queue: str, job_id: str, enqueued_at: int | None = None) -> RunNow:
        with self._lock:
            job = self._jobs.get(queue, {}).get(job_id)
            if job is None or enqueued_at not in (None, job.new.enqueued_at):
                return RunNow.NO_JOB
            if job.is_held:
                return RunNow.RUNS
            if job.due <= self._clock.now:
                return RunNow.WAS_DUE
            job.due = self._clock.now
            return RunNow.DUE

    async def depth(self, queue: str) -> int:
        return len(self._jobs.get(queue, {}))

    async def depths(self, queues: Sequence[str]) -> dict[str, int]:
        return {queue: len(self._jobs.get(queue, {})) for queue in queues}

    def woken(self, queue: str, event: asyncio.Event) -> AbstractAsyncContextManager[None]:  # noqa: ARG002 - as in Redis
        raise WorkerError(_NOT_IN_A_TEST.format(what="a worker"))

    @asynccontextmanager
    async def _told_of_end(self, job_id: str, event: asyncio.Event) -> AsyncIterator[None]:
        waiting = self._ended.setdefault(job_id, [])
        waiting.append(event)
        try:
            yield
        finally:
            waiting.remove(event)

    def ended(self, queue: str, job_id: str, event: asyncio.Event) -> AbstractAsyncContextManager[None]:
        job = self._jobs.get(queue, {}).get(job_id)
        if job is not None and not job.is_held and self._result(job_id) is None:
            raise WorkerError(
                f"job {job_id} has not run, and no worker runs in a test: write 'await jobs.drain()' before you wait "
                "for its result"
            )
        return self._told_of_end(job_id, event)

    async def ping(self) -> None:
        """Answer."""

    async def close(self) -> None:
        """Close nothing."""

    # What the kit calls.

    @contextmanager
    def pause(self, queue: str) -> Iterator[None]:
        """Claim nothing from a queue, in a block."""
        self._pauses[queue] += 1
        try:
            yield
        finally:
            self._pauses[queue] -= 1

    @property
    def paused(self) -> frozenset[str]:
        """The queues from which nothing is claimed."""
        return frozenset(queue for queue, pauses in self._pauses.items() if pauses)

    @property
    def expected(self) -> list[Expected]:
        """The jobs that were enqueued in a transaction and are not published."""
        with self._lock:
            return list(self._expected.values())

    def publish_expected(self, found: Iterable[Expected]) -> None:
        """Publish jobs whose rows are there. Their delays count from when they were enqueued."""
        with self._lock:
            for each in found:
                self._publish(each.job, each.since, is_committed=each.connection is None)

    def waiting(self, queue: str | None = None) -> list[QueuedJob]:
        """The jobs that wait, in the order in which they are due."""
        with self._lock:
            jobs = [
                job
                for name, by_id in self._jobs.items()
                if queue in (None, name)
                for job in by_id.values()
                if not job.is_held
            ]
        return sorted(jobs, key=lambda job: (job.due, job.order))

    def next_due(self, queue: str | None = None, of: Container[Key] | None = None) -> QueuedJob | None:
        """The next job that is due now, but none of a paused queue.

        Args:
            of: only these jobs.
        """
        now = self._clock.now
        due = (job for job in self.waiting(queue) if job.new.queue not in self.paused and job.due <= now)
        return next((job for job in due if of is None or job.key in of), None)

    def claim_job(self, job: QueuedJob) -> Claim:
        """Claim one job for a worker."""
        with self._lock:
            job.is_held = True
            return Claim(
                job.new.id.encode(),
                None if self._has_expired(job) else job.new.payload,
                str(job.due).encode(),
                job.tries,
                job.crashes,
                float(self._clock.now + 1) if job.is_aborted else None,
            )

    def lose_worker(self, job: QueuedJob) -> None:
        """Let the worker that runs a job die. The job stays held until `end_leases`."""
        job.crashes += 1

    def end_leases(self) -> None:
        """Give back the jobs whose workers have died."""
        with self._lock:
            for by_id in self._jobs.values():
                for job in by_id.values():
                    job.is_held = False

    def requeue(self, new: NewJob) -> QueuedJob:
        """Queue a job once more, as when Redis has lost its end."""
        with self._lock:
            self._results.pop(new.id, None)
            if new.id not in self._jobs.get(new.queue, {}):
                self._put(new, self._clock.now)
            return self._jobs[new.queue][new.id]

    def unqueued(self, new: NewJob, tries: int, crashes: int) -> QueuedJob:
        """A job that is run without a queue, after so many failed tries and crashes."""
        return QueuedJob(new, new.enqueued_at, next(self._order), self._clock.now, None, tries, crashes)

    def add_slot(self, new: NewJob) -> None:
        """Queue the job of a cron slot, unless its id is taken."""
        with self._lock:
            if not self._is_taken(new):
                self._put(new, self._clock.now)

    async def finish(self, queue: str, completions: Sequence[Completion]) -> list[bool]:
        with self._lock:
            return [self._finish(queue, completion) for completion in completions]

    def _finish(self, queue: str, completion: Completion) -> bool:
        job_id = completion.raw_id.decode()
        job = self._jobs.get(queue, {}).get(job_id)
        if job is None or not job.is_held:
            return False
        now = self._clock.now
        match completion.action:
            case "end":
                del self._jobs[queue][job_id]
                keep = int(completion.keep)
                if keep > 0 and completion.value:
                    self._results[job_id] = completion.value, now + keep
                for event in self._ended.get(job_id, ()):
                    event.set()
            case "back":
                job.is_held = False
            case action:
                job.is_held = False
                job.due = now + completion.delay
                if action == "again":
                    job.tries = int(str(completion.keep).split(" ")[0])
        return True

    def _publish(self, job: NewJob, now: int, *, is_committed: bool = True) -> bool:
        """Add a job that its row says is to run, unless it was added. A kept result belongs to an earlier run."""
        if (job.id, job.enqueued_at) in self.known:
            if (queued := self._jobs.get(job.queue, {}).get(job.id)) is not None:
                queued.is_committed = queued.is_committed or is_committed
            return False
        self._set_aside(job.id)
        self._results.pop(job.id, None)
        self._put(job, now)
        self._jobs[job.queue][job.id].is_committed = is_committed
        return True

    def _put(self, job: NewJob, now: int) -> bool:
        due = now + job.delay if job.due is None else job.due
        expires_at = None if job.expires is None else max(due, now) + job.expires
        self._jobs.setdefault(job.queue, {})[job.id] = QueuedJob(job, due, next(self._order), now, expires_at)
        self._expected.pop((job.id, job.enqueued_at), None)
        self.known[job.id, job.enqueued_at] = job
        return True

    def _is_taken(self, job: NewJob) -> bool:
        """Whether a job that waits or runs has the id, or a kept result. An aborted job's result is set aside."""
        if any(job.id in by_id for by_id in self._jobs.values()):
            return True
        self._set_aside(job.id)
        return self._result(job.id) is not None

    def _set_aside(self, job_id: str) -> None:
        result = self._result(job_id)
        if result is not None and result.startswith(ABORTED):
            self._aborted[job_id, int(deserialize_trusting(result)["et"])] = result
            del self._results[job_id]

    def _result(self, job_id: str) -> bytes | None:
        value, until = self._results.get(job_id, (None, 0))
        return value if until > self._clock.now else None

    def _has_expired(self, job: QueuedJob) -> bool:
        return job.expires_at is not None and job.expires_at <= self._clock.now


async def _nothing() -> None:
    """The default of `MemoryBroker.after_commit`."""


async def _nothing_of(_job: QueuedJob) -> None:
    """The default of `MemoryBroker.run_aborted`."""

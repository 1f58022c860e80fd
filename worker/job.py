"""``Job``: the handle to one job: where it is, what came of it."""

import asyncio
import contextlib
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar

from db.errors import NestedWriterError
from worker.broker.broker import Broker, default_broker
from worker.broker.records import JobSnapshot, JobStatus, to_ms
from worker.client.enqueue import Transaction
from worker.client.ledger_status import LedgerStatus, abort_pending, ledger_status
from worker.client.signature import Signature
from worker.context import from_milliseconds
from worker.errors import JobFailed, JobNotCommittedError, LedgerAwayError, PayloadError, ResultNotFoundError
from worker.message import Message, deserialize, dump

R = TypeVar("R", covariant=True)  # noqa: PLC0105 - a plain name reads better in signatures

_LOOK_AGAIN = 0.5  # seconds


@dataclass(frozen=True, slots=True)
class JobInfo:
    """What is known of a job; the last five only once it has ended."""

    job_id: str
    task: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    status: JobStatus
    enqueued_at: datetime
    success: bool | None = None
    result: Any = None
    """The result, or the exception that ended the job."""
    tries: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None


class _Ending(NamedTuple):
    """How a job has ended."""

    success: bool
    result: Any
    """What it returned, or the exception that ended it."""


class Job(Generic[R]):
    """One job. Made by `Task.enqueue`, or by hand: ``Job("r7")``.

    An id that is free again may be used again. The handle that `enqueue` gave speaks of its own job and no other; one
    that does not know when its job was enqueued, of the last job of that id.

    Args:
        job_id: its id.
        queue_name: the queue it was put into (default: the one that `queue` puts jobs into).
        broker: the Redis to ask (default: the default broker).
        enqueued_at: when it was enqueued, as `enqueued_at` of another handle or of its `info()` has it (default: not
            known).
        is_new: whether `enqueue` put it there; False where its id was taken, so that this is the earlier job.
        queue: the deprecated name of `broker`.

    Raises:
        ValueError: `enqueued_at` has no time zone.
    """

    def __init__(
        self,
        job_id: str,
        *,
        queue_name: str | None = None,
        broker: Broker | None = None,
        enqueued_at: datetime | None = None,
        is_new: bool = False,
        signature: Signature | None = None,
        transaction: Transaction | None = None,
        queue: Broker | None = None,
    ) -> None:
        if enqueued_at is not None and enqueued_at.tzinfo is None:
            raise ValueError(f"Job(enqueued_at={enqueued_at!r}) has no time zone: give it as info() has it")
        self.job_id = job_id
        self.enqueued_at = enqueued_at
        self.is_new = is_new
        self._queue_name = queue_name
        self._broker = broker or queue
        self._signature = signature
        self._transaction = transaction

    def __repr__(self) -> str:
        return f"<Job {self.job_id}>"

    @property
    def queue_name(self) -> str:
        return self._queue_name or self._redis.name

    async def status(self) -> JobStatus:
        """Where it is now."""
        status = (await self._snapshot()).status
        if status is JobStatus.not_found and (remembered := await self._recollection()) is not None:
            return remembered.status
        return status

    async def info(self) -> JobInfo | None:
        """All that is known of it, or None for a job that neither Redis nor the ledger knows."""
        snapshot = await self._snapshot()
        if snapshot.result is not None:
            return self._finished(deserialize(snapshot.result))
        if snapshot.payload is None:
            remembered = await self._recollection()
            return None if remembered is None else self._remembered(remembered)
        return self._waiting(Message.decode(self.job_id, snapshot.payload), snapshot.status)

    async def result(self, timeout: float | None = None) -> R:  # noqa: ASYNC109 - arq's own name for it
        """Wait for the job and return its result, or raise the exception that ended it.

        Args:
            timeout: seconds to wait (default: as long as it takes).

        Raises:
            TimeoutError: it did not end in time.
            ResultNotFoundError: neither Redis nor the ledger knows the job, or its result was not kept.
            JobNotCommittedError: the scope that it was enqueued in has not committed, so that it cannot run.
            JobFailed: it ended with an exception that is not built in; built-in ones are raised as themselves.
        """
        self._require_committed()
        ending = await self._ended(timeout)
        if ending.success:
            return self._as_promised(ending.result)
        raise ending.result if isinstance(ending.result, BaseException) else JobFailed("unknown", str(ending.result))

    async def abort(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - arq's own name for it
        """Ask for the job to be aborted, and wait until it has ended.

        One that waits does not run any more; one that runs is cancelled within a second, and rolls back.

        Args:
            timeout: seconds to wait (default: as long as it takes).

        Returns:
            True if it was aborted; False if it ended otherwise, there is no such job, or its result is not kept.

        Raises:
            TimeoutError: it did not end in time.
            LedgerAwayError: it is not in Redis, and the database does not say whether it is still to get there.
            JobNotCommittedError: the scope that it was enqueued in has not committed; roll that back instead.
        """
        self._require_committed()
        if not await self._redis.abort(self.queue_name, self.job_id, self._moment):
            return await abort_pending(self.job_id, self._moment)
        try:
            ending = await self._ended(timeout)
        except ResultNotFoundError:
            return False
        return not ending.success and isinstance(ending.result, asyncio.CancelledError)

    async def _ended(self, timeout: float | None) -> "_Ending":  # noqa: ASYNC109 - see `result`
        """Wait for the job to end; how it did."""
        try:
            async with asyncio.timeout(timeout):
                return await self._finished_result() or await self._pushed_result()
        except TimeoutError:
            raise TimeoutError(f"job {self.job_id} did not end within {timeout} s") from None

    async def _pushed_result(self) -> "_Ending":
        """Wait to be told of the end; look now and then all the same, as a notice may be lost."""
        ended = asyncio.Event()
        async with self._redis.ended(self.queue_name, self.job_id, ended):
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN):
                        await ended.wait()
                ended.clear()
                if (ending := await self._finished_result()) is not None:
                    return ending

    async def _finished_result(self) -> "_Ending | None":
        snapshot = await self._snapshot()
        if snapshot.result is not None:
            data = deserialize(snapshot.result)
            return _Ending(data["s"], data["r"])
        if snapshot.status is not JobStatus.not_found:
            return None
        try:
            remembered = await ledger_status(self.job_id, self._moment)
        except LedgerAwayError as error:
            if isinstance(error.__cause__, NestedWriterError):
                raise  # to wait would be to wait for oneself
            return None  # whether there is such a job can be told later
        if remembered is None:
            raise ResultNotFoundError(f"job {self.job_id} is not in Redis: {self._why_not_found}")
        if not remembered.is_pending:
            return _Ending(remembered.success, remembered.result)
        if self._transaction is not None and self._transaction.is_joined:
            raise JobNotCommittedError(
                f"job {self.job_id} was enqueued in a transaction that is part of another one, a test's say: no worker "
                "can run it before that is committed"
            )
        return None

    @property
    def _why_not_found(self) -> str:
        if self._transaction is not None and not self._transaction.is_committed:
            return "the transaction that it was enqueued in was not committed"
        return "there is none of this id, or its result was not kept"

    async def _recollection(self) -> LedgerStatus | None:
        """What the ledger remembers. Where the database is away, Redis' word stands."""
        with contextlib.suppress(LedgerAwayError):
            return await ledger_status(self.job_id, self._moment)
        return None

    def _require_committed(self) -> None:
        if self._transaction is not None and self._transaction.is_open:
            raise JobNotCommittedError(
                f"job {self.job_id} exists once its scope has committed, and not before: leave the scope first, or "
                "'await db.commit()', or enqueue it with using(transactional=False)"
            )

    def _as_promised(self, value: Any) -> R:
        result: R = value if self._signature is None else self._signature.restore_result(dump(value))
        return result

    def _waiting(self, message: Message, status: JobStatus) -> JobInfo:
        return JobInfo(
            job_id=self.job_id,
            task=message.task,
            args=message.args,
            kwargs=dict(message.kwargs),
            status=status,
            enqueued_at=from_milliseconds(message.enqueued_at),
        )

    def _remembered(self, job: LedgerStatus) -> JobInfo:
        waiting = self._waiting(job.message, job.status)
        if job.is_pending:
            return waiting
        return replace(
            waiting,
            success=job.success,
            result=self._as_promised(job.result) if job.success else job.result,
            tries=job.tries,
            started_at=job.started_at,
            finished_at=job.finished_at,
        )

    def _finished(self, data: dict[str, Any]) -> JobInfo:
        return JobInfo(
            job_id=self.job_id,
            task=data["f"],
            args=tuple(data["a"]),
            kwargs=data["k"],
            status=JobStatus.complete,
            enqueued_at=from_milliseconds(data["et"]),
            success=data["s"],
            result=self._as_promised(data["r"]) if data["s"] else data["r"],
            tries=data["t"],
            started_at=from_milliseconds(data["st"]),
            finished_at=from_milliseconds(data["ft"]),
        )

    async def _snapshot(self) -> JobSnapshot:
        """What Redis knows of this job; nothing where another one has its id by now."""
        snapshot = await self._redis.status(self.queue_name, self.job_id, self._moment)
        if snapshot.set_aside is not None or not self._is_own(snapshot):
            return JobSnapshot(None, snapshot.set_aside, in_progress=False, due=None, now=snapshot.now)
        return snapshot

    def _is_own(self, snapshot: JobSnapshot) -> bool:
        """Whether Redis speaks of this very job. What does not say when it was enqueued does not speak against it."""
        raw = snapshot.result or snapshot.payload
        if self._moment is None or raw is None:
            return True
        try:
            return deserialize(raw).get("et") in (self._moment, 0)
        except PayloadError:
            return False

    @property
    def _moment(self) -> int | None:
        return None if self.enqueued_at is None else to_ms(self.enqueued_at)

    @property
    def _redis(self) -> Broker:
        return self._broker or default_broker()

"""``Job``: the handle of one job, to read its status and result and to abort it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Generic, NamedTuple, TypeVar

from db.errors import NestedWriterError
from worker.broker.broker import Broker, default_broker
from worker.broker.progress import ProgressRecords
from worker.broker.records import JobSnapshot, JobStatus, to_ms
from worker.client.enqueue import EnclosingTransaction
from worker.client.ledger_status import LedgerStatus, abort_pending, ledger_status
from worker.client.signature import Signature
from worker.context import Progress, from_milliseconds
from worker.errors import JobFailed, JobNotCommittedError, LedgerAwayError, PayloadError, ResultNotFoundError
from worker.message import Message, deserialize, dump

R = TypeVar("R", covariant=True)  # noqa: PLC0105 - a plain name reads better in signatures

_POLL_INTERVAL = 0.5  # seconds


@dataclass(frozen=True, slots=True)
class JobInfo:
    """The known data of a job. The five fields from `success` on are set when the job has ended.

    ::

        info = await job.info()
        if info is not None and info.success is False:
            print(info.result)  # the exception
    """

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
    parent: str | None = None
    """The id of the job that enqueued this one."""
    traceparent: str | None = None
    """The trace and span that the job was enqueued in, as W3C Trace Context writes them."""
    progress: Progress | None = None
    """The last progress that the running job has reported."""


class _Result(NamedTuple):
    """The result of a job that has ended."""

    success: bool
    value: Any
    """The return value, or the exception that ended the job."""


class Job(Generic[R]):
    """The handle of one job. `Task.enqueue` returns one; you can also make one: ``Job("r7")``.

    ::

        job = await ship.enqueue(order_id=7)
        receipt = await job.result(timeout=10)

        job = Job("ship-7")  # a job that another process has enqueued
        print(await job.status())

    A free id may be used again for another job. The handle that `enqueue` returns belongs to its own job. A handle
    without `enqueued_at` belongs to the last job of the id.

    Args:
        job_id: the job's id.
        queue_name: the queue of the job (default: the broker's default queue).
        broker: the broker of the job (default: the default broker).
        enqueued_at: the enqueue time, from `enqueued_at` of another handle or of `info()` (default: not known).
        is_new: True if `enqueue` added this job; False if its id was taken, so that this is the earlier job.
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
        transaction: EnclosingTransaction | None = None,
        queue: Broker | None = None,
    ) -> None:
        if enqueued_at is not None and enqueued_at.tzinfo is None:
            raise ValueError(f"Job(enqueued_at={enqueued_at!r}) has no time zone: pass info().enqueued_at")
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
        """The job's present status."""
        status = (await self._snapshot()).status
        if status is JobStatus.not_found and (stored := await self._ledger_status()) is not None:
            return stored.status
        return status

    async def info(self) -> JobInfo | None:
        """The known data of the job; None if neither Redis nor the ledger has the job."""
        snapshot = await self._snapshot()
        if snapshot.result is not None:
            return self._info_of_result(deserialize(snapshot.result))
        if snapshot.payload is None:
            stored = await self._ledger_status()
            return None if stored is None else self._info_of_row(stored)
        info = self._info_of_message(Message.decode(self.job_id, snapshot.payload), snapshot.status)
        return replace(info, progress=await self._last_progress()) if snapshot.in_progress else info

    async def result(self, timeout: float | None = None) -> R:  # noqa: ASYNC109 - arq's own name for it
        """Wait for the job and return its result, or raise the exception that ended it.

        Args:
            timeout: seconds to wait (default: as long as it takes).

        Raises:
            TimeoutError: the job did not end in time.
            ResultNotFoundError: neither Redis nor the ledger has the job, or its result was not kept.
            JobNotCommittedError: the transaction that the job was enqueued in is not committed, so that it cannot run.
            JobFailed: the job ended with an exception that is not built in. Built-in ones are raised as themselves.
        """
        self._require_committed()
        result = await self._wait_for_end(timeout)
        if result.success:
            return self._as_return_type(result.value)
        raise result.value if isinstance(result.value, BaseException) else JobFailed("unknown", str(result.value))

    async def abort(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - arq's own name for it
        """Abort the job, and wait until it has ended.

        A waiting job does not run. A running job is cancelled within a second and rolled back.

        Args:
            timeout: seconds to wait (default: as long as it takes).

        Returns:
            True if the job was aborted; False if it ended otherwise, does not exist, or its result is not kept.

        Raises:
            TimeoutError: the job did not end in time.
            LedgerAwayError: the job is not in Redis, and the ledger's database, where it may be pending, is away.
            JobNotCommittedError: the scope that the job was enqueued in has not committed. Roll the scope back instead.
        """
        self._require_committed()
        if not await self._redis.abort(self.queue_name, self.job_id, self._enqueued_ms):
            return await abort_pending(self.job_id, self._enqueued_ms)
        try:
            result = await self._wait_for_end(timeout)
        except ResultNotFoundError:
            return False
        return not result.success and isinstance(result.value, asyncio.CancelledError)

    async def progress(self) -> AsyncIterator[Progress]:
        """Yield the progress that the job has reported, and each later report, until the job has ended.

            async for progress in job.progress():
                print(progress.done, progress.total, progress.note)

        Reports may be skipped: what is yielded is the latest one. A job may end without any report.

        Raises:
            ResultNotFoundError: neither Redis nor the ledger has the job.
            JobNotCommittedError: the transaction that the job was enqueued in is not committed.
        """
        self._require_committed()
        news, seen, was_found = asyncio.Event(), None, False
        queue, broker = self.queue_name, self._redis
        followed = ProgressRecords(broker.connections).follow(queue, self.job_id, news)
        async with followed, broker.ended(queue, self.job_id, news):
            while True:
                news.clear()
                # Asked first: the last report is written before the end.
                has_ended = await self._has_ended(was_found=was_found)
                was_found = True
                progress = await self._last_progress()
                if progress is not None and progress != seen:
                    seen = progress
                    yield progress
                if has_ended:
                    return
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_INTERVAL):
                        await news.wait()

    async def _has_ended(self, *, was_found: bool) -> bool:
        """Whether the job has ended. A job that was there and is not there any more has: its result is not kept."""
        try:
            return await self._read_result() is not None
        except ResultNotFoundError:
            if not was_found and await self._last_progress() is None:
                raise
            return True

    async def _last_progress(self) -> Progress | None:
        record = await ProgressRecords(self._redis.connections).read(self.queue_name, self.job_id)
        if record is None or self._enqueued_ms not in (None, record.enqueued_at):
            return None
        return Progress(record.done, record.total, record.note, record.attempt, from_milliseconds(record.at))

    async def _wait_for_end(self, timeout: float | None) -> "_Result":  # noqa: ASYNC109 - see `result`
        try:
            async with asyncio.timeout(timeout):
                return await self._read_result() or await self._wait_for_notice()
        except TimeoutError:
            raise TimeoutError(f"job {self.job_id} did not end within {timeout} s") from None

    async def _wait_for_notice(self) -> "_Result":
        """Wait for the notice of the job's end. Poll twice a second too, as a notice may be lost."""
        ended = asyncio.Event()
        async with self._redis.ended(self.queue_name, self.job_id, ended):
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_INTERVAL):
                        await ended.wait()
                ended.clear()
                if (result := await self._read_result()) is not None:
                    return result

    async def _read_result(self) -> "_Result | None":
        """Read the result from Redis or the ledger; None if the job has not ended."""
        snapshot = await self._snapshot()
        if snapshot.result is not None:
            data = deserialize(snapshot.result)
            return _Result(data["s"], data["r"])
        if snapshot.status is not JobStatus.not_found:
            return None
        try:
            stored = await ledger_status(self.job_id, self._enqueued_ms)
        except LedgerAwayError as error:
            if isinstance(error.__cause__, NestedWriterError):
                raise  # the caller's own scope holds the lock, so waiting would never end
            return None  # the ledger may answer later
        if stored is None:
            raise ResultNotFoundError(f"job {self.job_id} is not in Redis: {self._why_not_found}")
        if not stored.is_pending:
            return _Result(stored.success, stored.result)
        if self._transaction is not None and self._transaction.is_joined:
            raise JobNotCommittedError(
                f"job {self.job_id} was enqueued in a transaction that is part of another one, as in a test: "
                "no worker can run the job before the outer transaction is committed"
            )
        return None

    @property
    def _why_not_found(self) -> str:
        if self._transaction is not None and not self._transaction.is_committed:
            return "the transaction that it was enqueued in was not committed"
        return "there is no job of this id, or its result was not kept"

    async def _ledger_status(self) -> LedgerStatus | None:
        """The job's status in the ledger; None if the ledger has no such job or its database is away."""
        with contextlib.suppress(LedgerAwayError):
            return await ledger_status(self.job_id, self._enqueued_ms)
        return None

    def _require_committed(self) -> None:
        if self._transaction is not None and self._transaction.is_open:
            raise JobNotCommittedError(
                f"job {self.job_id} does not exist before {self._transaction.way_to_commit}, or enqueue it with "
                "using(transactional=False)"
            )

    def _as_return_type(self, value: Any) -> R:
        """The value in the type of the task's return annotation."""
        result: R = value if self._signature is None else self._signature.restore_result(dump(value))
        return result

    def _info_of_message(self, message: Message, status: JobStatus) -> JobInfo:
        return JobInfo(
            job_id=self.job_id,
            task=message.task,
            args=message.args,
            kwargs=dict(message.kwargs),
            status=status,
            enqueued_at=from_milliseconds(message.enqueued_at),
            parent=message.parent,
            traceparent=message.traceparent,
        )

    def _info_of_row(self, row: LedgerStatus) -> JobInfo:
        info = self._info_of_message(row.message, row.status)
        if row.is_pending:
            return info
        return replace(
            info,
            success=row.success,
            result=self._as_return_type(row.result) if row.success else row.result,
            tries=row.tries,
            started_at=row.started_at,
            finished_at=row.finished_at,
        )

    def _info_of_result(self, data: dict[str, Any]) -> JobInfo:
        return JobInfo(
            job_id=self.job_id,
            task=data["f"],
            args=tuple(data["a"]),
            kwargs=data["k"],
            status=JobStatus.complete,
            enqueued_at=from_milliseconds(data["et"]),
            success=data["s"],
            result=self._as_return_type(data["r"]) if data["s"] else data["r"],
            tries=data["t"],
            started_at=from_milliseconds(data["st"]),
            finished_at=from_milliseconds(data["ft"]),
            parent=data.get("parent"),
            traceparent=data.get("traceparent"),
        )

    async def _snapshot(self) -> JobSnapshot:
        """The job's snapshot in Redis; an empty one if another job has the id now."""
        snapshot = await self._redis.status(self.queue_name, self.job_id, self._enqueued_ms)
        if snapshot.set_aside is not None or not self._is_own(snapshot):
            return JobSnapshot(None, snapshot.set_aside, in_progress=False, due=None, now=snapshot.now)
        return snapshot

    def _is_own(self, snapshot: JobSnapshot) -> bool:
        """Whether the snapshot belongs to this job. Without an enqueue time on either side, it is taken to."""
        raw = snapshot.result or snapshot.payload
        if self._enqueued_ms is None or raw is None:
            return True
        try:
            return deserialize(raw).get("et") in (self._enqueued_ms, 0)
        except PayloadError:
            return False

    @property
    def _enqueued_ms(self) -> int | None:
        return None if self.enqueued_at is None else to_ms(self.enqueued_at)

    @property
    def _redis(self) -> Broker:
        return self._broker or default_broker()

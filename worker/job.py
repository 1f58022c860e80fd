"""``Job``: the handle to one job: where it is, what came of it."""

import asyncio
import contextlib
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from worker.context import from_milliseconds
from worker.errors import JobFailed, ResultNotFoundError
from worker.message import Message, deserialize, dump
from worker.queue import JobStatus, Queue, Trace, default_queue
from worker.signature import Signature

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


class Job(Generic[R]):
    """One job, by its id. Made by `Task.enqueue`, or by hand: ``Job("r7")``.

    Args:
        job_id: its id.
        queue_name: the queue it was put into (default: the one that `queue` puts jobs into).
        queue: the Redis to ask (default: the default queue).
        is_new: whether `enqueue` put it there; False where its id was taken, so that this is the earlier job.
    """

    def __init__(
        self,
        job_id: str,
        *,
        queue_name: str | None = None,
        queue: Queue | None = None,
        is_new: bool = False,
        signature: Signature | None = None,
    ) -> None:
        self.job_id = job_id
        self.is_new = is_new
        self._queue_name = queue_name
        self._queue = queue
        self._signature = signature

    def __repr__(self) -> str:
        return f"<Job {self.job_id}>"

    @property
    def queue_name(self) -> str:
        return self._queue_name or self._redis.name

    async def status(self) -> JobStatus:
        """Where it is now."""
        return (await self._trace()).status

    async def info(self) -> JobInfo | None:
        """All that is known of it, or None for a job that Redis does not know."""
        trace = await self._trace()
        if trace.result is not None:
            return self._finished(deserialize(trace.result))
        if trace.payload is None:
            return None
        message = Message.decode(self.job_id, trace.payload)
        return JobInfo(
            job_id=self.job_id,
            task=message.task,
            args=message.args,
            kwargs=dict(message.kwargs),
            status=trace.status,
            enqueued_at=from_milliseconds(message.enqueued_at),
        )

    async def result(self, timeout: float | None = None) -> R:  # noqa: ASYNC109 - arq's own name for it
        """Wait for the job and return its result, or raise the exception that ended it.

        Args:
            timeout: seconds to wait (default: as long as it takes).

        Raises:
            TimeoutError: it did not end in time.
            ResultNotFoundError: Redis does not know the job, or its result was not kept.
            JobFailed: it ended with an exception that is not built in; built-in ones are raised as themselves.
        """
        data = deserialize(await self._ended(timeout))
        if data["s"]:
            return self._as_promised(data["r"])
        raise data["r"] if isinstance(data["r"], BaseException) else JobFailed("unknown", str(data["r"]))

    async def abort(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - arq's own name for it
        """Ask for the job to be aborted, and wait until it has ended.

        One that waits does not run any more; one that runs is cancelled within a second, and rolls back.

        Args:
            timeout: seconds to wait (default: as long as it takes).

        Returns:
            True if it was aborted; False if it ended otherwise, there is no such job, or its result is not kept.

        Raises:
            TimeoutError: it did not end in time.
        """
        if not await self._redis.abort(self.queue_name, self.job_id):
            return False
        try:
            data = deserialize(await self._ended(timeout))
        except ResultNotFoundError:
            return False
        return not data["s"] and isinstance(data["r"], asyncio.CancelledError)

    async def _ended(self, timeout: float | None) -> bytes:  # noqa: ASYNC109 - see `result`
        """Wait for the job to end; its result on the wire."""
        try:
            async with asyncio.timeout(timeout):
                return await self._finished_result() or await self._pushed_result()
        except TimeoutError:
            raise TimeoutError(f"job {self.job_id} did not end within {timeout} s") from None

    async def _pushed_result(self) -> bytes:
        """Wait to be told of the end; look now and then all the same, as a notice may be lost."""
        ended = asyncio.Event()
        async with self._redis.ended(self.queue_name, self.job_id, ended):
            while (raw := await self._finished_result()) is None:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_AGAIN):
                        await ended.wait()
                ended.clear()
        return raw

    async def _finished_result(self) -> bytes | None:
        trace = await self._trace()
        if trace.status is JobStatus.not_found:
            raise ResultNotFoundError(
                f"job {self.job_id} is not in Redis: there is none of this id, or its result was not kept"
            )
        return trace.result

    def _as_promised(self, value: Any) -> R:
        result: R = value if self._signature is None else self._signature.restore_result(dump(value))
        return result

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

    async def _trace(self) -> Trace:
        return await self._redis.trace(self.queue_name, self.job_id)

    @property
    def _redis(self) -> Queue:
        return self._queue or default_queue()

"""``ProgressRecords``: the progress that running jobs report, in Redis."""

import asyncio
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, NamedTuple

from pydantic_core import from_json, to_json

from worker.broker.keys import Keys

if TYPE_CHECKING:
    from worker.broker.connections import Connections


class ProgressRecord(NamedTuple):
    """The progress of one attempt of a job. Times are milliseconds since the epoch."""

    done: float
    total: float | None
    note: str
    attempt: int
    enqueued_at: int
    """The id and this time identify the job."""
    at: int
    """When it was reported, by the worker's clock."""

    @classmethod
    def decode(cls, raw: bytes) -> "ProgressRecord | None":
        """Decode a record. None if a later version has written it in another form."""
        try:
            return cls(*from_json(raw))
        except (ValueError, TypeError):
            return None


class ProgressRecords:
    """The progress of the jobs of one Redis."""

    def __init__(self, connections: "Connections") -> None:
        self._connections = connections

    async def write(self, queue: str, job_id: str, record: ProgressRecord, lifetime: int) -> None:
        """Write a job's progress for `lifetime` milliseconds, and notify who follows it."""
        keys = Keys.of(queue)
        arguments = [keys.progress(job_id), keys.progressed(job_id), to_json(record), lifetime]
        await self._connections.run("progress", queue, arguments)

    async def read(self, queue: str, job_id: str) -> ProgressRecord | None:
        """The last progress that a job has reported."""
        raw: bytes | None = await self._connections.client.get(Keys.of(queue).progress(job_id))
        return None if raw is None else ProgressRecord.decode(raw)

    def follow(self, queue: str, job_id: str, event: asyncio.Event) -> AbstractAsyncContextManager[None]:
        """Set `event` whenever the job reports progress."""
        return self._connections.subscriber.subscribe(Keys.of(queue).progressed(job_id), event)

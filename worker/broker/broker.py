"""``Broker``: the commands of a job's life in Redis.

1. The keys are arq's own, so stock producers and clients share them.
2. Each command that writes is one Lua script, one round trip, and goes by Redis' own clock.
3. Every write of a worker shows its token, and does nothing where another worker holds the job by now.

What is no command of a job is built on the same connections: `worker_records`, `cron_slots` and `epochs` beside this.
"""

import asyncio
import functools
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from worker.broker.connection import AsyncClient
from worker.broker.connections import Connections
from worker.broker.keys import Keys
from worker.broker.records import Claim, Claims, Completion, JobSnapshot
from worker.broker.unserved import is_time_to_look, take_note
from worker.config import Config
from worker.new_job import NewJob

_NEVER = 100 * 365 * 24 * 60 * 60 * 1000  # milliseconds, for a job that does not expire: SET takes a number
_CHUNK = 1000  # jobs a round trip: more would block Redis for longer than a few milliseconds
_READ = 8  # times `max_payload` that a worker reads
_CHUNK_BYTES = 8 * 1024 * 1024  # of payload a round trip: Redis ends a connection that sends a gigabyte at once


class Broker:
    """The queues of one Redis.

    Args:
        url: ``redis://``, ``rediss://`` (TLS), ``unix://``, ``redis+sentinel://`` or ``redis+cluster://``: see
            :mod:`worker.broker.redis_url`.
        name: the queue that jobs go to unless their task says otherwise (default: ``arq:queue``, as in arq).
        max_payload: bytes that the arguments of one job may have (default: 1 MiB). Workers read eight times as many,
            as other producers have other limits.
        default: this is the default broker from now on, in place of the one that ``REDIS_URL`` names.

    Each event loop that uses it has connections of its own: threads that run loops may share it.

    Raises:
        ValueError: the URL cannot be used.
    """

    def __init__(
        self, url: str, *, name: str = "arq:queue", max_payload: int = 1024 * 1024, default: bool = False
    ) -> None:
        self.name = name
        self.max_payload = max_payload
        self.url = url
        self.connections = Connections(url)
        if default:
            set_default_broker(self)

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[bool]:
        """Queue the jobs, a round trip for each thousand (or 8 MiB) of a queue; of each, whether its id was free."""
        return await self._put("enqueue", jobs)

    async def publish(self, jobs: Sequence[NewJob]) -> list[bool]:
        """`enqueue` for jobs that the ledger says are to run, whatever is left of an earlier run.

        Returns:
            Of each, whether Redis had lost it, or never had it.
        """
        return await self._put("publish", jobs)

    async def exists(self, queue: str, job_ids: Sequence[str]) -> list[bool]:
        """Which of these jobs Redis has, waiting or running; a kept result does not count."""
        return [bool(reply) for reply in await self.connections.run("exists", queue, [Keys.of(queue).prefix, *job_ids])]

    async def status(self, queue: str, job_id: str, enqueued_at: int | None = None) -> JobSnapshot:
        """What Redis knows of the job of this id, in one round trip; and of the one that was enqueued at that time."""
        arguments = [Keys.of(queue).prefix, job_id, "" if enqueued_at is None else enqueued_at]
        payload, result, in_progress, due, now, set_aside = await self.connections.run("status", queue, arguments)
        return JobSnapshot(
            payload, result, bool(in_progress), None if due is None else float(due), float(now), set_aside
        )

    async def abort(self, queue: str, job_id: str, enqueued_at: int | None = None) -> bool:
        """Ask for a job to be aborted; False where there is none of this id, or it was not enqueued at that time."""
        keys = Keys.of(queue)
        arguments = [keys.prefix, keys.wake, job_id, "" if enqueued_at is None else enqueued_at]
        return bool(await self.connections.run("abort", queue, arguments))

    async def claim(self, queue: str, token: str, lease: int, wanted: int, suspects: int = 1) -> Claims:
        """Take up to `wanted` due jobs, for `lease` milliseconds unless it is renewed; of suspects up to `suspects`.

        Fewer where they are large. A payload of more than `largest_read` bytes stays where it is.
        """
        arguments = [Keys.of(queue).prefix, token, lease, wanted, suspects, self.largest_read]
        now, next_score, *jobs = await self.connections.run("claim", queue, arguments)
        claims = [
            Claim(raw_id, payload, score, tries, crashes, None if abort_at is None else float(abort_at))
            if not isinstance(payload, int)  # the size of one that was not read
            else Claim(raw_id, None, score, tries, crashes, None, unread=payload)
            for raw_id, payload, score, tries, crashes, abort_at in jobs
        ]
        return Claims(claims, None if next_score is None else max(float(next_score) - now, 0.0) / 1000)

    async def renew(self, queue: str, token: str, lease: int, raw_ids: Sequence[bytes]) -> list[bool]:
        """Renew the leases of one claim, for `lease` milliseconds; tells of each whether it still held."""
        arguments: list[Any] = [Keys.of(queue).prefix, lease]
        for raw_id in raw_ids:
            arguments += (raw_id, token)
        return [state == 1 for state in (await self.connections.run("renew", queue, arguments))[::2]]

    @property
    def largest_read(self) -> int:
        """Bytes that a payload may have to be read by a worker."""
        return _READ * self.max_payload

    async def finish(self, queue: str, completions: Sequence[Completion]) -> list[bool]:
        """Record what became of held jobs; tells of each whether it was still this worker's."""
        keys = Keys.of(queue)
        arguments: list[Any] = [keys.prefix, keys.wake]
        for completion in completions:
            arguments += completion
        return [bool(reply) for reply in await self.connections.run("finish", queue, arguments)]

    async def depth(self, queue: str) -> int:
        """How many jobs wait or run."""
        return int(await self.redis.zcard(queue))

    async def depths(self, queues: Sequence[str]) -> dict[str, int]:
        """The depth of each queue, in one round trip and at one moment.

        Not at one moment where a name is hash-tagged: a cluster may keep such queues in several places.
        """
        one_place = all(Keys.of(queue).prefix == Keys.of("").prefix for queue in queues)
        async with self.redis.pipeline(transaction=one_place) as pipe:
            for queue in queues:
                pipe.zcard(queue)
            return dict(zip(queues, await pipe.execute(), strict=True))

    def woken(self, queue: str, event: asyncio.Event) -> AbstractAsyncContextManager[None]:
        """Set `event` whenever something is put into `queue`."""
        return self.connections.notices.on(Keys.of(queue).wake, event)

    def ended(self, queue: str, job_id: str, event: asyncio.Event) -> AbstractAsyncContextManager[None]:
        """Set `event` when the job has ended."""
        return self.connections.notices.on(Keys.of(queue).ended(job_id), event)

    async def ping(self) -> None:
        """Ask Redis for an answer; raises what stands in the way."""
        await self.redis.ping()

    async def close(self) -> None:
        """Close the connections of the event loop that runs now, and those of `enqueue_sync`. The next use opens them.

        Those of other loops are closed by their own `close`, or when their loop ends.
        """
        await self.connections.close()

    @property
    def redis(self) -> AsyncClient:
        """The client of the event loop that runs now."""
        return self.connections.client

    async def _put(self, script: str, jobs: Sequence[NewJob]) -> list[bool]:
        """Run `script` on the jobs, in pieces; what it replies of each."""
        replies = [False] * len(jobs)
        by_queue: dict[str, list[int]] = {}
        for position, job in enumerate(jobs):
            by_queue.setdefault(job.queue, []).append(position)
        for queue, positions in by_queue.items():
            for chunk in _chunks(positions, jobs):
                answers = await self._put_chunk(script, queue, [jobs[i] for i in chunk])
                for position, answer in zip(chunk, answers, strict=True):
                    replies[position] = bool(answer)
        return replies

    async def _put_chunk(self, script: str, queue: str, jobs: Sequence[NewJob]) -> list[int]:
        keys = Keys.of(queue)
        is_looking = is_time_to_look(queue)
        arguments: list[Any] = [keys.prefix, keys.wake, "1" if is_looking else ""]
        for job in jobs:
            arguments += (job.id, job.payload, _when(job.delay, job.due, job.expires))
        answers: list[int] = await self.connections.run(script, queue, arguments)
        if is_looking:
            take_note(queue, is_served=bool(answers.pop()))
        return answers


def _chunks(positions: Sequence[int], jobs: Sequence[NewJob]) -> Iterator[list[int]]:
    """The positions in pieces that are sent at once."""
    chunk: list[int] = []
    size = 0
    for position in positions:
        if len(chunk) == _CHUNK or (chunk and size + len(jobs[position].payload) > _CHUNK_BYTES):
            yield chunk
            chunk, size = [], 0
        chunk.append(position)
        size += len(jobs[position].payload)
    if chunk:
        yield chunk


@functools.lru_cache(maxsize=16)
def _when(delay: int, due: int | None, expires: int | None) -> str:
    """A job's times, as ``scripts/new_jobs.lua`` reads them. Many jobs at once mostly share them."""
    expires = _NEVER if expires is None else expires
    return f"in {delay:d} {expires:d}" if due is None else f"at {due:d} {expires:d}"


_default: Broker | None = None
_making = threading.Lock()


def default_broker() -> Broker:
    """The default broker: the one given as such, else the one that ``REDIS_URL`` names.

    Raises:
        ConfigError: there is neither.
    """
    if _default is None:
        with _making:  # threads may ask at the same time
            if _default is None:
                config = Config.load()
                url = config.require_redis_url()
                set_default_broker(Broker(url, name=config.queue, max_payload=config.max_payload))
    assert _default is not None  # noqa: S101 - just set
    return _default


def given_default_broker() -> Broker | None:
    """The default broker, if one was given or used already."""
    return _default


def set_default_broker(broker: Broker | None) -> None:
    """Make `broker` the default one; None goes back to ``REDIS_URL``."""
    global _default  # noqa: PLW0603 - the one default of the process
    _default = broker

"""``Broker``: the commands of a job's life in Redis.

1. The keys are arq's own, so stock arq producers and clients share them.
2. Each command that writes is one Lua script and one round trip. It uses the clock of Redis.
3. Every write of a worker carries the worker's token. It does nothing if another worker holds the job by now.

`worker_records`, `cron_slots` and `epochs` are other commands on the same connections.
"""

import asyncio
import functools
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from worker.broker.keys import Keys
from worker.broker.records import Claim, Claims, Completion, JobSnapshot, QueueClaims, RunNow
from worker.broker.unserved import is_check_due, record_check
from worker.new_job import NewJob

if TYPE_CHECKING:
    from worker.broker.connection import AsyncClient

_NEVER = 100 * 365 * 24 * 60 * 60 * 1000  # milliseconds, for a job that does not expire, as SET needs a number
_CHUNK = 1000  # jobs in one round trip; more would block Redis for longer than a few milliseconds
_READ = 8  # a worker reads payloads of up to this many times `max_payload`
_CHUNK_BYTES = 8 * 1024 * 1024  # bytes in one round trip; Redis closes a connection that sends a gigabyte at once


class Broker:
    """The queues of one Redis.

    ::

        broker = Broker("redis://localhost:6379", default=True)
        await ship.enqueue(order_id=7)
        await broker.close()  # at the end of the application

    Args:
        url: ``redis://``, ``rediss://`` (TLS), ``unix://``, ``redis+sentinel://`` or ``redis+cluster://``.
            :mod:`worker.broker.redis_url` describes them.
        name: the queue of jobs whose task names no queue (default: ``arq:queue``, as in arq).
        max_payload: the most bytes that the arguments of one job may have (default: 1 MiB). Workers read eight times
            as many, because other producers have other limits.
        default: make this the default broker, instead of the one that ``REDIS_URL`` names.

    Each event loop has connections of its own, so threads that run event loops may share a broker.

    Raises:
        ValueError: the URL cannot be used.
    """

    def __init__(
        self, url: str, *, name: str = "arq:queue", max_payload: int = 1024 * 1024, default: bool = False
    ) -> None:
        from worker.broker.connections import Connections  # noqa: PLC0415 - redis-py, which a first broker needs

        self.name = name
        self.max_payload = max_payload
        self.url = url
        self.connections = Connections(url)
        if default:
            set_default_broker(self)

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[bool]:
        """Add the jobs to their queues. Each round trip takes up to 1000 jobs (or 8 MiB) of one queue.

        Returns:
            For each job, whether its id was free.
        """
        return await self._send("enqueue", jobs)

    async def publish(self, jobs: Sequence[NewJob]) -> list[bool]:
        """Add jobs that the ledger says are to run, whatever an earlier run has left in Redis.

        Returns:
            For each job, whether Redis did not have it.
        """
        return await self._send("publish", jobs)

    def expect(self, jobs: Sequence[NewJob], connection: Any = None) -> None:  # noqa: ARG002 - for a test's broker
        """Check that jobs of one queue, which are enqueued in a transaction, can be published after its COMMIT.

        Args:
            connection: SQLAlchemy's connection that has the transaction, if no scope owns it.

        Raises:
            WorkerError: this Redis cannot serve the queue under its name.
        """
        self.connections.check_name(jobs[0].queue)

    async def exists(self, queue: str, job_ids: Sequence[str]) -> list[bool]:
        """Check for each of these jobs whether it waits or runs. A kept result does not count."""
        return [bool(reply) for reply in await self.connections.run("exists", queue, [Keys.of(queue).prefix, *job_ids])]

    async def status(self, queue: str, job_id: str, enqueued_at: int | None = None) -> JobSnapshot:
        """Read what Redis knows of the job that has this id now, in one round trip.

        Args:
            enqueued_at: read also the result of the job of this id that was enqueued at this time and was aborted.
        """
        arguments = [Keys.of(queue).prefix, job_id, "" if enqueued_at is None else enqueued_at]
        payload, result, in_progress, due, now, set_aside = await self.connections.run("status", queue, arguments)
        return JobSnapshot(
            payload, result, bool(in_progress), None if due is None else float(due), float(now), set_aside
        )

    async def abort(self, queue: str, job_id: str, enqueued_at: int | None = None) -> bool:
        """Request that a job is aborted.

        Returns:
            False if no job has this id, or it was not enqueued at `enqueued_at`.
        """
        keys = Keys.of(queue)
        arguments = [keys.prefix, keys.wake, job_id, "" if enqueued_at is None else enqueued_at]
        return bool(await self.connections.run("abort", queue, arguments))

    async def run_now(self, queue: str, job_id: str, enqueued_at: int | None = None) -> RunNow:
        """Make a waiting job due now. A job that is due already keeps its place.

        Args:
            enqueued_at: only a job that was enqueued at this time.
        """
        keys = Keys.of(queue)
        arguments = [keys.prefix, keys.wake, job_id, "" if enqueued_at is None else enqueued_at]
        return RunNow(await self.connections.run("run_now", queue, arguments))

    async def claim(
        self, queue: str, token: str, lease: int, wanted: int, suspects: int = 1, guarded: bool = False
    ) -> Claims:
        """Take up to `wanted` due jobs of one queue, as `claim_from`."""
        claims = await self.claim_from((queue,), token, lease, wanted, suspects, (queue,) if guarded else ())
        return Claims(claims.jobs.get(queue, []), claims.next_due)

    async def claim_from(
        self,
        queues: Sequence[str],
        token: str,
        lease: int,
        wanted: int,
        suspects: int = 1,
        guarded: Collection[str] = (),
    ) -> QueueClaims:
        """Take up to `wanted` due jobs, with a lease of `lease` milliseconds. Large jobs are taken in smaller numbers.

        A payload of more than `largest_read` bytes is not read.

        Args:
            queues: the queues in the order of their priority. One round trip serves all of them: see
                `Connections.together`.
            suspects: how many of the jobs may be suspects (`Claim.is_suspect`).
            guarded: the queues of which nothing is taken while they have no complete epoch, as Redis may have lost that
                they are paused.

        Raises:
            redis.exceptions.ResponseError: no job was taken, and a queue could not be claimed from.
        """
        queues = tuple(queues)
        arguments = (token, lease, wanted, suspects, self.largest_read, _guards(queues, frozenset(guarded)))
        now, next_due, refused, *found = await self.connections.run_on("claim", queues, arguments)
        jobs = {
            queues[number - 1]: [_claim(*job) for job in of_queue]
            for number, of_queue in zip(found[::2], found[1::2], strict=True)
        }
        pause = None if next_due is None else max(float(next_due) - now, 0.0) / 1000
        return QueueClaims(jobs, pause, None if refused is None else refused.decode(errors="replace"))

    async def renew(self, queue: str, token: str, lease: int, raw_ids: Sequence[bytes]) -> list[bool]:
        """Renew the leases of one claim for `lease` milliseconds.

        Returns:
            For each job, whether this worker still held it.
        """
        arguments: list[Any] = [Keys.of(queue).prefix, lease]
        for raw_id in raw_ids:
            arguments += (raw_id, token)
        return [state == 1 for state in (await self.connections.run("renew", queue, arguments))[::2]]

    @property
    def largest_read(self) -> int:
        """The most bytes of a payload that a worker reads."""
        return _READ * self.max_payload

    async def finish(self, queue: str, completions: Sequence[Completion]) -> list[bool]:
        """Record how the attempts at held jobs ended.

        Returns:
            For each job, whether this worker still held it.
        """
        keys = Keys.of(queue)
        arguments: list[Any] = [keys.prefix, keys.wake]
        for completion in completions:
            arguments += completion
        return [bool(reply) for reply in await self.connections.run("finish", queue, arguments)]

    async def depth(self, queue: str) -> int:
        """The number of jobs that wait or run."""
        return int(await self.redis.zcard(queue))

    async def payload_beginnings(self, queue: str, most: int) -> list[bytes]:
        """The first byte of each payload, of up to `most` jobs of the queue, the first due ones."""
        prefix = f"{Keys.of(queue).prefix}job:".encode()
        ids = await self.redis.zrange(queue, 0, most - 1)
        async with self.redis.pipeline(transaction=False) as pipe:
            for raw_id in ids:
                pipe.getrange(prefix + raw_id, 0, 0)
            return [reply for reply in await pipe.execute(raise_on_error=False) if isinstance(reply, bytes)]

    async def depths(self, queues: Sequence[str]) -> dict[str, int]:
        """The depth of each queue, in one round trip.

        All depths are of one moment, unless a queue's name is hash-tagged: a cluster may keep such queues on several
        nodes.
        """
        on_one_node = all(Keys.of(queue).prefix == Keys.of("").prefix for queue in queues)
        async with self.redis.pipeline(transaction=on_one_node) as pipe:
            for queue in queues:
                pipe.zcard(queue)
            return dict(zip(queues, await pipe.execute(), strict=True))

    def woken(self, queue: str, event: asyncio.Event) -> AbstractAsyncContextManager[None]:
        """Set `event` whenever a job is added to `queue`."""
        return self.connections.subscriber.subscribe(Keys.of(queue).wake, event)

    def ended(self, queue: str, job_id: str, event: asyncio.Event) -> AbstractAsyncContextManager[None]:
        """Set `event` when the job has ended."""
        return self.connections.subscriber.subscribe(Keys.of(queue).ended(job_id), event)

    async def ping(self) -> None:
        """Check that Redis answers. Raises redis-py's errors."""
        await self.redis.ping()

    async def close(self) -> None:
        """Close the connections of the running event loop, and those of `enqueue_sync`. The next use opens them again.

        Another loop's connections are closed by `close` on that loop, or when the loop ends.
        """
        await self.connections.close()

    @property
    def redis(self) -> "AsyncClient":
        """The client of the running event loop."""
        return self.connections.client

    async def _send(self, script: str, jobs: Sequence[NewJob]) -> list[bool]:
        """Run `script` on the jobs, in chunks.

        Returns:
            The reply for each job, in the order of `jobs`.
        """
        replies = [False] * len(jobs)
        by_queue: dict[str, list[int]] = {}
        for position, job in enumerate(jobs):
            by_queue.setdefault(job.queue, []).append(position)
        for queue, positions in by_queue.items():
            for chunk in _chunks(positions, jobs):
                answers = await self._send_chunk(script, queue, [jobs[i] for i in chunk])
                for position, answer in zip(chunk, answers, strict=True):
                    replies[position] = bool(answer)
        return replies

    async def _send_chunk(self, script: str, queue: str, jobs: Sequence[NewJob]) -> list[int]:
        keys = Keys.of(queue)
        is_checking = is_check_due(queue)
        arguments: list[Any] = [keys.prefix, keys.wake, "1" if is_checking else ""]
        for job in jobs:
            arguments += (job.id, job.payload, _times(job.delay, job.due, job.expires))
        answers: list[int] = await self.connections.run(script, queue, arguments)
        if is_checking:
            record_check(queue, is_served=bool(answers.pop()))
        return answers


def _claim(
    raw_id: bytes,
    payload: bytes | int | None,
    score: bytes,
    tries: int,
    crashes: int,
    abort_at: bytes | None,
    expires_in: int,
) -> Claim:
    """A job of the claim script's reply."""
    if isinstance(payload, int):  # the size of a payload that was not read
        return Claim(raw_id, None, score, tries, crashes, None, unread=payload)
    return Claim(raw_id, payload, score, tries, crashes, None if abort_at is None else float(abort_at), 0, expires_in)


@functools.lru_cache(maxsize=256)
def _guards(queues: tuple[str, ...], guarded: frozenset[str]) -> str:
    """A digit for each queue: whether it is guarded. Cached: a worker claims from the same queues all the time."""
    return "".join(f"{queue in guarded:d}" for queue in queues)


def _chunks(positions: Sequence[int], jobs: Sequence[NewJob]) -> Iterator[list[int]]:
    """The positions, in chunks that are sent in one round trip each."""
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
def _times(delay: int, due: int | None, expires: int | None) -> str:
    """A job's times, as ``scripts/new_jobs.lua`` reads them. Cached: most jobs of one call have equal times."""
    expires = _NEVER if expires is None else expires
    return f"in {delay:d} {expires:d}" if due is None else f"at {due:d} {expires:d}"


_default: Broker | None = None
_creating = threading.Lock()


def default_broker() -> Broker:
    """The default broker: the broker that was set, else one for ``REDIS_URL``.

    ::

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            yield
            await default_broker().close()

    Raises:
        ConfigError: no broker was set, and ``REDIS_URL`` is not set.
    """
    if _default is None:
        from worker.config import Config  # noqa: PLC0415 - pydantic, for a process that uses the default

        with _creating:  # several threads may call this at the same time
            if _default is None:
                config = Config.load()
                url = config.require_redis_url()
                set_default_broker(Broker(url, name=config.queue, max_payload=config.max_payload))
    assert _default is not None  # noqa: S101 - just set
    return _default


def given_default_broker() -> Broker | None:
    """The default broker, if one was set or used already."""
    return _default


def set_default_broker(broker: Broker | None) -> None:
    """Make `broker` the default broker. None restores the broker that ``REDIS_URL`` names.

    ::

        set_default_broker(Broker("redis://queue.example.org"))
        set_default_broker(None)  # that of REDIS_URL again
    """
    global _default  # noqa: PLW0603 - one default per process
    _default = broker

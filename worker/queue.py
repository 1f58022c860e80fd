"""``Queue``: the verbs of a job's life in Redis; with the heartbeat's line, `worker.renewal`, all that speaks to it.

1. The keys are arq's own, so stock producers and clients share them.
2. Each verb that writes is one Lua script, one round trip, and goes by Redis' own clock.
3. Every write of a worker shows its token, and does nothing where another worker holds the job by now.
"""

import asyncio
import functools
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

from redis.exceptions import ReadOnlyError

from worker import loop_thread
from worker.config import Config
from worker.connection import AsyncClient, drop_connections
from worker.errors import WorkerError
from worker.exchange import Claim, Claims, Settlement, Slot, Trace
from worker.keys import Keys
from worker.loop_connections import LoopConnections
from worker.new_job import A_DAY, NewJob
from worker.redis_url import CLUSTER, RedisAddress
from worker.scripts import Script
from worker.unserved import is_time_to_look, take_note

_NEVER = 100 * 365 * 24 * 60 * 60 * 1000  # milliseconds, for a job that does not expire: SET takes a number
_BEGUN = b"?"  # before an epoch that nobody has completed
_NO_TIME = 15  # digits of milliseconds, which no datetime can say
_EPOCH = datetime.fromtimestamp(0, UTC)
_ON_LINES = ("claim", "finish")  # the scripts that have a connection each, as a worker runs them all the time
_CHUNK = 1000  # jobs a round trip: more would block Redis for longer than a few milliseconds
_READ = 8  # times `max_payload` that a worker reads
_CHUNK_BYTES = 8 * 1024 * 1024  # of payload a round trip: Redis ends a connection that sends a gigabyte at once


class Queue:
    """The queues of one Redis.

    Args:
        url: ``redis://``, ``rediss://`` (TLS), ``unix://``, ``redis+sentinel://`` or ``redis+cluster://``: see
            :mod:`worker.redis_url`.
        name: the queue that jobs go to unless their task says otherwise (default: ``arq:queue``, as in arq).
        max_payload: bytes that the arguments of one job may have (default: 1 MiB). Workers read eight times as many,
            as other producers have other limits.
        default: this is the default queue from now on, in place of the one that ``REDIS_URL`` names.

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
        RedisAddress.parse(url)  # where it is wrong, that is told here
        self._by_loop: dict[asyncio.AbstractEventLoop, LoopConnections] = {}
        if default:
            set_default_queue(self)

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[bool]:
        """Queue the jobs, a round trip for each thousand (or 8 MiB) of a queue; of each, whether its id was free."""
        return await self._put("enqueue", jobs)

    async def publish(self, jobs: Sequence[NewJob]) -> list[bool]:
        """`enqueue` for jobs that the ledger says are to run, whatever is left of an earlier run.

        Returns:
            Of each, whether Redis had lost it, or never had it.
        """
        return await self._put("publish", jobs)

    async def known(self, queue: str, job_ids: Sequence[str]) -> list[bool]:
        """Which of these jobs Redis has, waiting or running; a kept result does not count."""
        return [bool(reply) for reply in await self._run("known", queue, [Keys.of(queue).prefix, *job_ids])]

    async def trace(self, queue: str, job_id: str, enqueued_at: int | None = None) -> Trace:
        """What Redis knows of the job of this id, in one round trip; and of the one that was enqueued at that time."""
        arguments = [Keys.of(queue).prefix, job_id, "" if enqueued_at is None else enqueued_at]
        payload, result, in_progress, due, now, set_aside = await self._run("trace", queue, arguments)
        return Trace(payload, result, bool(in_progress), None if due is None else float(due), float(now), set_aside)

    def check_name(self, queue: str) -> None:
        """Raise :class:`~worker.errors.WorkerError` for a queue that this Redis cannot serve under its name."""
        if self.url.startswith(CLUSTER) and not Keys.of(queue).in_one_slot:
            raise WorkerError(f"a Redis Cluster serves hash-tagged queues only: call it {{{queue}}} instead of {queue}")

    async def abort(self, queue: str, job_id: str, enqueued_at: int | None = None) -> bool:
        """Ask for a job to be aborted; False where there is none of this id, or it was not enqueued at that time."""
        keys = Keys.of(queue)
        arguments = [keys.prefix, keys.wake, job_id, "" if enqueued_at is None else enqueued_at]
        return bool(await self._run("abort", queue, arguments))

    async def claim(self, queue: str, token: str, lease: int, wanted: int, suspects: int = 1) -> Claims:
        """Take up to `wanted` due jobs, for `lease` milliseconds unless it is renewed; of suspects up to `suspects`.

        Fewer where they are large. A payload of more than `largest_read` bytes stays where it is.
        """
        arguments = [Keys.of(queue).prefix, token, lease, wanted, suspects, self.largest_read]
        now, next_score, *jobs = await self._run("claim", queue, arguments)
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
        return [state == 1 for state in (await self._run("renew", queue, arguments))[::2]]

    @property
    def largest_read(self) -> int:
        """Bytes that a payload may have to be read by a worker."""
        return _READ * self.max_payload

    async def finish(self, queue: str, settlements: Sequence[Settlement]) -> list[bool]:
        """Record what became of held jobs; tells of each whether it was still this worker's."""
        keys = Keys.of(queue)
        arguments: list[Any] = [keys.prefix, keys.wake]
        for settlement in settlements:
            arguments += settlement
        return [bool(reply) for reply in await self._run("finish", queue, arguments)]

    async def add_slots(self, queue: str, slots: Sequence[Slot]) -> list[bool]:
        """Queue the jobs of schedule slots, oldest first; tells of each whether nobody had done it before."""
        keys = Keys.of(queue)
        arguments: list[Any] = [keys.prefix, keys.wake, A_DAY]
        for slot in slots:
            arguments += slot
        return [bool(reply) for reply in await self._run("slots", queue, arguments)]

    async def last_slots(self, queue: str) -> dict[str, datetime]:
        """The last slot of each scheduled task that was queued."""
        last: dict[bytes, bytes] = await self.redis.hgetall(Keys.of(queue).slots)  # type: ignore[misc]
        # Whatever else may be there is no time.
        moments = {task: moment for task, moment in last.items() if moment.isdigit() and len(moment) < _NO_TIME}
        return {
            task.decode(errors="replace"): _EPOCH + timedelta(milliseconds=int(moment))
            for task, moment in moments.items()
        }

    async def epochs(self, queues: Sequence[str]) -> dict[str, bytes | None]:
        """Of each queue, what tells one memory of Redis from another; None where it has lost it, and nobody has said
        since that all is there again.
        """
        async with self.redis.pipeline(transaction=False) as pipe:
            for queue in queues:
                pipe.get(Keys.of(queue).epoch)
            values: list[bytes | None] = await pipe.execute()
        found = zip(queues, values, strict=True)
        return {queue: None if epoch is None or epoch.startswith(_BEGUN) else epoch for queue, epoch in found}

    async def begin_epoch(self, queue: str) -> bytes:
        """Begin a new epoch where there is none; which one it is now."""
        key = Keys.of(queue).epoch
        epoch = secrets.token_hex(8).encode()
        while not await self.redis.set(key, _BEGUN + epoch, nx=True):
            other: bytes | None = await self.redis.get(key)
            if other is not None:
                return other.removeprefix(_BEGUN)
        return epoch

    async def complete_epoch(self, queue: str, epoch: bytes) -> bool:
        """Say that all is in the queue that is to be; False where Redis has lost it again since `epoch` began."""
        return bool(await self._run("epoch", queue, [Keys.of(queue).epoch, epoch, _BEGUN]))

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

    async def record_health(self, queue: str, worker_id: str, record: bytes, lifetime: int) -> None:
        """Write a worker's record of itself, for `lifetime` milliseconds."""
        keys = Keys.of(queue)
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.set(keys.health(worker_id), record, px=lifetime)
            pipe.sadd(keys.healthy, worker_id)
            pipe.pexpire(keys.healthy, lifetime)
            await pipe.execute()

    async def forget_health(self, queue: str, worker_id: str) -> None:
        keys = Keys.of(queue)
        async with self.redis.pipeline(transaction=False) as pipe:
            pipe.delete(keys.health(worker_id))
            pipe.srem(keys.healthy, worker_id)
            await pipe.execute()

    async def health_records(self, queue: str) -> dict[str, bytes]:
        """The record of each worker of `queue` that is well, by the worker's id.

        They are found by the set of ids: to look for their keys would be to look at the key of every job.
        """
        keys = Keys.of(queue)
        ids = sorted(raw_id.decode(errors="replace") for raw_id in await self.redis.smembers(keys.healthy))  # type: ignore[misc]
        if not ids:
            return {}
        records = await self.redis.mget([keys.health(worker_id) for worker_id in ids])
        gone = [worker_id for worker_id, record in zip(ids, records, strict=True) if record is None]
        if gone:
            await self.redis.srem(keys.healthy, *gone)  # type: ignore[misc]
        return {worker_id: record for worker_id, record in zip(ids, records, strict=True) if record is not None}

    async def announce(self, queue: str, tasks: Sequence[str], lifetime: int) -> None:
        """Say that a living worker of `queue` knows these tasks, which is believed for `lifetime` milliseconds."""
        await self._run("announce", queue, [Keys.of(queue).tasks, lifetime, *tasks])

    async def announced(self, queue: str) -> frozenset[str]:
        """The tasks that living workers of `queue` know; none where no worker serves it."""
        tasks = await self._run("announced", queue, [Keys.of(queue).tasks])
        return frozenset(task.decode(errors="replace") for task in tasks)

    def woken(self, queue: str, event: asyncio.Event) -> AbstractAsyncContextManager[None]:
        """Set `event` whenever something is put into `queue`."""
        return self._here.notices.on(Keys.of(queue).wake, event)

    def ended(self, queue: str, job_id: str, event: asyncio.Event) -> AbstractAsyncContextManager[None]:
        """Set `event` when the job has ended."""
        return self._here.notices.on(Keys.of(queue).ended(job_id), event)

    async def ping(self) -> None:
        """Ask Redis for an answer; raises what stands in the way."""
        await self.redis.ping()

    async def now(self, queue: str) -> datetime:
        """The clock of the server that holds `queue`, in UTC."""
        microseconds = await self._run("clock", queue, [])
        return _EPOCH + timedelta(microseconds=microseconds)

    async def open(self) -> None:
        """Open what a worker needs all the time, before others have taken all that the server allows."""
        here = self._here
        for script in _ON_LINES:
            if (line := here.line(script)) is not None:
                await line.open()
        await here.client.ping()

    async def close(self) -> None:
        """Close the connections of the event loop that runs now, and those of `enqueue_sync`. The next use opens them.

        Those of other loops are closed by their own `close`, or when their loop ends.
        """
        self._drop_those_of_closed_loops()
        here = self._by_loop.pop(asyncio.get_running_loop(), None)
        of_threads = self._by_loop.pop(loop, None) if (loop := loop_thread.own_loop()) is not None else None
        if here is not None:
            await here.close()
        if of_threads is not None:
            await asyncio.to_thread(loop_thread.run, of_threads.close())

    @property
    def redis(self) -> AsyncClient:
        """The client of the event loop that runs now."""
        return self._here.client

    @property
    def _here(self) -> LoopConnections:
        """The connections of the event loop that runs now."""
        loop = asyncio.get_running_loop()
        here = self._by_loop.get(loop)
        if here is None:
            self._drop_those_of_closed_loops()
            here = self._by_loop[loop] = LoopConnections(self.url)
        return here

    def _drop_those_of_closed_loops(self) -> None:
        for loop in [loop for loop in list(self._by_loop) if loop.is_closed()]:
            if (left := self._by_loop.pop(loop, None)) is not None:  # unless another thread has just done so
                left.abandon()

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
        answers: list[int] = await self._run(script, queue, arguments)
        if is_looking:
            take_note(queue, is_served=bool(answers.pop()))
        return answers

    async def _run(self, script: str, queue: str, arguments: Sequence[Any]) -> Any:
        self.check_name(queue)
        here = self._here
        line = here.line(script) if script in _ON_LINES else None
        try:
            return await Script.named(script).run(line or here.client, queue, arguments)
        except ReadOnlyError:  # the server is not the primary any more: the next try asks who is
            await drop_connections(here.client)
            await here.close_lines()
            raise


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
    """A job's times, as ``scripts/enqueue.lua`` reads them. Many jobs at once mostly share them."""
    expires = _NEVER if expires is None else expires
    return f"in {delay:d} {expires:d}" if due is None else f"at {due:d} {expires:d}"


_default: Queue | None = None
_making = threading.Lock()


def default_queue() -> Queue:
    """The default queue: the one given as such, else the one that ``REDIS_URL`` names.

    Raises:
        ConfigError: there is neither.
    """
    if _default is None:
        with _making:  # threads may ask at the same time
            if _default is None:
                config = Config.load()
                set_default_queue(Queue(config.require_redis_url(), name=config.queue, max_payload=config.max_payload))
    assert _default is not None  # noqa: S101 - just set
    return _default


def given_default_queue() -> Queue | None:
    """The default queue, if one was given or used already."""
    return _default


def set_default_queue(queue: Queue | None) -> None:
    """Make `queue` the default one; None goes back to ``REDIS_URL``."""
    global _default  # noqa: PLW0603 - the one default of the process
    _default = queue

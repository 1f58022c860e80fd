"""``Queue``: the only code that speaks Redis. One Lua script a verb, beside it in ``scripts/``.

1. The keys are arq's own (arq 0.28, ``constants.py``), so stock producers and clients share them.
2. Every script goes by Redis' own clock.
3. A queue is opened on first use, in the loop that runs then.
"""

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from worker.config import Config
from worker.errors import WorkerError

JOB = "arq:job:"
RESULT = "arq:result:"
IN_PROGRESS = "arq:in-progress:"
RETRY = "arq:retry:"
ABORT = "arq:abort"

EXPIRES = 24 * 60 * 60 * 1000
"""Milliseconds that a job may wait past its due time, unless it says otherwise: arq's default."""

_CHUNK = 1000  # jobs a round trip: more would block Redis for longer than a few milliseconds
_SOCKET_TIMEOUT = 10.0  # seconds


class JobStatus(StrEnum):
    """Where a job is, as arq spells it."""

    deferred = "deferred"
    queued = "queued"
    in_progress = "in_progress"
    complete = "complete"
    not_found = "not_found"


@dataclass(frozen=True, slots=True)
class Entry:
    """One job to be queued."""

    job_id: str
    payload: bytes
    queue: str
    delay: int = 0
    """Milliseconds from when Redis takes it."""
    due: int | None = None
    """Instead of a delay: milliseconds since the epoch."""
    expires: int = EXPIRES
    """Milliseconds that it may wait past its due time."""


class Trace(NamedTuple):
    """What Redis knows of one job."""

    payload: bytes | None
    result: bytes | None
    in_progress: bool
    due: float | None
    """Its score in the queue, in milliseconds since the epoch; None where it is not queued."""
    now: float
    """Redis' clock, likewise."""

    @property
    def status(self) -> JobStatus:
        if self.result is not None:
            return JobStatus.complete
        if self.in_progress:
            return JobStatus.in_progress
        if self.due is None:
            return JobStatus.not_found
        return JobStatus.deferred if self.due > self.now else JobStatus.queued


class Queue:
    """The queues of one Redis.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``; options of redis-py's `Redis.from_url` may follow.
        name: the queue that jobs go to unless their task says otherwise (default: ``arq:queue``, as in arq).
        max_payload: bytes that the arguments of one job may have (default: 1 MiB).
        default: this is the default queue from now on, in place of the one that ``REDIS_URL`` names.
    """

    def __init__(
        self, url: str, *, name: str = "arq:queue", max_payload: int = 1024 * 1024, default: bool = False
    ) -> None:
        self.name = name
        self.max_payload = max_payload
        self._url = url
        self._redis: Redis | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        if default:
            set_default_queue(self)

    async def enqueue(self, entries: Sequence[Entry]) -> list[bool]:
        """Queue the jobs, a round trip for each thousand of a queue; tells of each whether its id was free."""
        added: dict[int, bool] = {}
        by_queue: dict[str, list[int]] = {}
        for position, entry in enumerate(entries):
            by_queue.setdefault(entry.queue, []).append(position)
        for queue, positions in by_queue.items():
            for start in range(0, len(positions), _CHUNK):
                chunk = positions[start : start + _CHUNK]
                replies = await self._run("enqueue", [queue], _enqueue_arguments([entries[i] for i in chunk]))
                added.update(zip(chunk, map(bool, replies), strict=True))
        return [added[position] for position in range(len(entries))]

    async def trace(self, queue: str, job_id: str) -> Trace:
        """What Redis knows of the job, in one round trip."""
        async with self.redis.pipeline(transaction=True) as pipe:
            pipe.get(JOB + job_id)
            pipe.get(RESULT + job_id)
            pipe.exists(IN_PROGRESS + job_id)
            pipe.zscore(queue, job_id)
            pipe.time()
            payload, result, in_progress, due, (seconds, microseconds) = await pipe.execute()
        return Trace(payload, result, bool(in_progress), due, seconds * 1000 + microseconds / 1000)

    async def ping(self) -> None:
        """Ask Redis for an answer; raises what stands in the way."""
        await self.redis.ping()

    async def close(self) -> None:
        """Close the connections. The next use opens them again."""
        redis, self._redis = self._redis, None
        if redis is not None:
            await redis.aclose()

    @property
    def redis(self) -> Redis:
        loop = asyncio.get_running_loop()
        if self._redis is not None and self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed():
                raise WorkerError(
                    "this Queue belongs to another event loop: 'await queue.close()' there first, or use "
                    "one Queue a loop"
                )
            self._redis = None  # its connections went with their loop
        if self._redis is None:
            limits: dict[str, Any] = {"socket_timeout": _SOCKET_TIMEOUT}
            if not self._url.startswith("unix:"):
                limits |= {"socket_connect_timeout": _SOCKET_TIMEOUT, "socket_keepalive": True}
            self._redis = Redis.from_url(self._url, **limits)
            self._loop = loop
        return self._redis

    async def _run(self, script: str, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        text, sha = _script(script)
        try:
            return await self.redis.evalsha(sha, len(keys), *keys, *arguments)  # type: ignore[misc]  # sync's type
        except NoScriptError:
            return await self.redis.eval(text, len(keys), *keys, *arguments)  # type: ignore[misc]  # sync's type


def now_ms() -> int:
    """This machine's clock, in milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def to_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _enqueue_arguments(entries: Sequence[Entry]) -> list[Any]:
    arguments: list[Any] = [JOB, RESULT]
    for entry in entries:
        due = "" if entry.due is None else entry.due
        arguments += (entry.job_id, entry.payload, "" if due else entry.delay, due, entry.expires)
    return arguments


@cache
def _script(name: str) -> tuple[str, str]:
    text = (resources.files("worker") / "scripts" / f"{name}.lua").read_text()
    return text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


_default: Queue | None = None


def default_queue() -> Queue:
    """The default queue: the one given as such, else the one that ``REDIS_URL`` names.

    Raises:
        ConfigError: there is neither.
    """
    if _default is None:
        config = Config.load()
        set_default_queue(Queue(config.require_redis_url(), name=config.queue, max_payload=config.max_payload))
    assert _default is not None  # noqa: S101 - just set
    return _default


def set_default_queue(queue: Queue | None) -> None:
    """Make `queue` the default one; None goes back to ``REDIS_URL``."""
    global _default  # noqa: PLW0603 - the one default of the process
    _default = queue

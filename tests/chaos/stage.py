"""``Stage``: the servers of a run, which may go away and come back, and how to look at them from outside."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import asyncpg
import redis
import redis.asyncio
from sqlalchemy import create_engine, make_url

from db.cancellation import to_the_end
from tests.chaos.chronicle import Wipe
from tests.chaos.schema import TABLES
from tests.chaos.tasks import SLOW_QUEUE
from tests.servers import Observer, as_dsn, as_url
from worker.embedded import EmbeddedPostgres, EmbeddedRedis
from worker.keys import Keys
from worker.ledger.migrate import upgrade_on

QUEUES = ("arq:queue", SLOW_QUEUE)
_ALL_QUEUES_PREFIX = Keys.of(QUEUES[0]).prefix


class Stage:
    """A Redis that persists nothing and a PostgreSQL, empty but for the tables; both end with the block.

    Each is on a socket of its own, so that nobody can take its place while it is down.
    """

    def __init__(self) -> None:
        self._redis = EmbeddedRedis()
        self._postgres = EmbeddedPostgres()
        self.redis_busy = asyncio.Lock()
        self.postgres_busy = asyncio.Lock()

    def __enter__(self) -> Self:
        self._redis.start()
        try:
            self._postgres.start()
            self._make_tables()
        except BaseException:
            self._redis.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._postgres.stop()
        self._redis.stop()

    @property
    def redis_url(self) -> str:
        return self._redis.url

    @property
    def database_url(self) -> str:
        return self._postgres.url

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Observer]:
        """Looks at the database, for the length of a block."""
        connection = await asyncpg.connect(as_dsn(make_url(self._postgres.url)))
        try:
            yield Observer(connection)
        finally:
            await connection.close()

    @asynccontextmanager
    async def redis(self) -> AsyncIterator["redis.asyncio.Redis"]:
        """Looks at Redis, for the length of a block."""
        client = redis.asyncio.Redis.from_url(self._redis.url)
        try:
            yield client
        finally:
            await client.aclose()

    async def kill_redis(self, away: float) -> Wipe:
        """``kill -9``, and start it again, empty, `away` seconds later."""
        begun = time.time()
        lost = await self._jobs_in_redis()
        await to_the_end(self._redis_again_after(away))
        return Wipe(begun, time.time(), lost)

    async def _redis_again_after(self, away: float) -> None:
        await asyncio.to_thread(self._redis.kill)
        await asyncio.sleep(away)
        await asyncio.to_thread(self._redis.restart)

    async def flush_redis(self) -> Wipe:
        """``FLUSHALL``, at one moment with the look at what it deletes."""
        begun = time.time()
        async with self.redis() as client, client.pipeline(transaction=True) as together:
            _look_for_jobs(together)
            together.flushall()
            *found, _ = await together.execute()
        return Wipe(begun, time.time(), _job_ids(found))

    async def restart_postgres(self, away: float) -> None:
        """In order, and back `away` seconds later: all sessions are ended."""
        await to_the_end(self._postgres_again_after(away, signal.SIGINT))

    async def crash_postgres(self, away: float) -> None:
        """An immediate shutdown: it recovers what was committed when it starts again, `away` seconds later."""
        await to_the_end(self._postgres_again_after(away, signal.SIGQUIT))

    async def _postgres_again_after(self, away: float, end: signal.Signals) -> None:
        os.kill(self._postgres.pid, end)
        await asyncio.sleep(away)
        await asyncio.to_thread(self._postgres.restart)

    async def _jobs_in_redis(self) -> frozenset[str]:
        async with self.redis() as client, client.pipeline(transaction=True) as together:
            _look_for_jobs(together)
            return _job_ids(await together.execute())

    def _make_tables(self) -> None:
        engine = create_engine(as_url(make_url(self._postgres.url), "psycopg"))
        with engine.begin() as connection:
            upgrade_on(connection)
            connection.exec_driver_sql(TABLES)
        engine.dispose()


def _look_for_jobs(pipeline: "redis.asyncio.client.Pipeline") -> None:
    pipeline.keys(f"{_ALL_QUEUES_PREFIX}job:*")
    for queue in QUEUES:
        pipeline.zrange(queue, 0, -1)


def _job_ids(found: list[list[bytes]]) -> frozenset[str]:
    keys, *queued = found
    prefix = len(f"{_ALL_QUEUES_PREFIX}job:")
    return frozenset([key.decode()[prefix:] for key in keys] + [raw_id.decode() for ids in queued for raw_id in ids])

"""``Servers``: the Redis and the PostgreSQL of a run, their outages, and connections to observe them."""

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

from db.aio.cancellation import shielded
from tests.chaos.logs import RedisWipe
from tests.chaos.tasks import SLOW_QUEUE, TABLES
from tests.servers import Observer, as_dsn, as_url
from worker.broker.keys import Keys
from worker.embedded import EmbeddedPostgres, EmbeddedRedis
from worker.ledger.migrate import upgrade_on

QUEUES = ("arq:queue", SLOW_QUEUE)
_ALL_QUEUES_PREFIX = Keys.of(QUEUES[0]).prefix


class Servers:
    """A Redis without persistence and a PostgreSQL with empty tables. Both run for the length of the block.

    Each listens on a socket of its own, so no other server can take its address while it is down.
    """

    def __init__(self) -> None:
        self._redis = EmbeddedRedis()
        self._postgres = EmbeddedPostgres()
        self.redis_fault_lock = asyncio.Lock()
        self.postgres_fault_lock = asyncio.Lock()

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
        """A connection that observes the database, for the length of a block."""
        connection = await asyncpg.connect(as_dsn(make_url(self._postgres.url)))
        try:
            yield Observer(connection)
        finally:
            await connection.close()

    @asynccontextmanager
    async def redis(self) -> AsyncIterator["redis.asyncio.Redis"]:
        """A connection that observes Redis, for the length of a block."""
        client = redis.asyncio.Redis.from_url(self._redis.url)
        try:
            yield client
        finally:
            await client.aclose()

    async def kill_redis(self, downtime: float) -> RedisWipe:
        """Kill Redis with SIGKILL and start it again, empty, `downtime` seconds later."""
        started = time.time()
        lost_job_ids = await self._jobs_in_redis()
        await shielded(self._restart_redis_after(downtime))
        return RedisWipe(started, time.time(), lost_job_ids)

    async def _restart_redis_after(self, downtime: float) -> None:
        await asyncio.to_thread(self._redis.kill)
        await asyncio.sleep(downtime)
        await asyncio.to_thread(self._redis.restart)

    async def flush_redis(self) -> RedisWipe:
        """Delete all data, and read in the same transaction which jobs that loses."""
        started = time.time()
        async with self.redis() as client, client.pipeline(transaction=True) as pipeline:
            _read_jobs(pipeline)
            pipeline.flushall()
            *found, _ = await pipeline.execute()
        return RedisWipe(started, time.time(), _job_ids(found))

    async def restart_postgres(self, downtime: float) -> None:
        """Shut PostgreSQL down, which ends all sessions, and start it again `downtime` seconds later."""
        await shielded(self._restart_postgres_after(downtime, signal.SIGINT))

    async def crash_postgres(self, downtime: float) -> None:
        """Shut PostgreSQL down at once, and start it again `downtime` seconds later, with crash recovery."""
        await shielded(self._restart_postgres_after(downtime, signal.SIGQUIT))

    async def _restart_postgres_after(self, downtime: float, shutdown: signal.Signals) -> None:
        os.kill(self._postgres.pid, shutdown)
        await asyncio.sleep(downtime)
        await asyncio.to_thread(self._postgres.restart)

    async def _jobs_in_redis(self) -> frozenset[str]:
        async with self.redis() as client, client.pipeline(transaction=True) as pipeline:
            _read_jobs(pipeline)
            return _job_ids(await pipeline.execute())

    def _make_tables(self) -> None:
        engine = create_engine(as_url(make_url(self._postgres.url), "psycopg"))
        with engine.begin() as connection:
            upgrade_on(connection)
            connection.exec_driver_sql(TABLES)
        engine.dispose()


def _read_jobs(pipeline: "redis.asyncio.client.Pipeline") -> None:
    pipeline.keys(f"{_ALL_QUEUES_PREFIX}job:*")
    for queue in QUEUES:
        pipeline.zrange(queue, 0, -1)


def _job_ids(found: list[list[bytes]]) -> frozenset[str]:
    keys, *queued = found
    prefix = len(f"{_ALL_QUEUES_PREFIX}job:")
    return frozenset([key.decode()[prefix:] for key in keys] + [raw_id.decode() for ids in queued for raw_id in ids])

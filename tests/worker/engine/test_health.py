"""Health: a worker has a record while it can work, and only then."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest
import redis

from tests.conftest import StartRedis
from tests.proxy import Proxy
from tests.waiting import eventually
from tests.worker.engine.conftest import Seen, StartWorker, Worker
from worker import Broker, task
from worker.embedded import EmbeddedRedis
from worker.engine import health
from worker.metrics.reader import MetricsReader
from worker.metrics.records import WorkerState

SOON = 5.0
"""Seconds within which a worker's record must be right."""


@task
async def double(number: int) -> int:
    return 2 * number


@pytest.fixture
def server(own_redis: StartRedis) -> EmbeddedRedis:
    return own_redis()


@pytest.fixture
async def client(server: EmbeddedRedis) -> AsyncIterator[Any]:
    """A client of `server`."""
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        yield client


@pytest.fixture
async def queue_on_server(server: EmbeddedRedis) -> AsyncIterator[Broker]:
    """The default queue, on `server`."""
    broker = Broker(server.url, default=True)
    yield broker
    await broker.close()


@pytest.fixture
def fast_health_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """All intervals of the health check are a fifth as long."""
    monkeypatch.setattr(health, "_INTERVAL", 0.2)
    monkeypatch.setattr(health, "_LIFETIME", 800)
    monkeypatch.setattr(health, "_FRESH", 0.6)
    monkeypatch.setattr(health, "_DATABASE_TIMEOUT", 0.4)


async def test_a_workers_health_record_counts_its_jobs_and_is_removed_at_its_end(
    start: StartWorker, broker: Broker, observer: Any, seen: Seen
) -> None:
    """Each of its queues has the record."""
    await double.using(queue="low", delay=60).enqueue(1)
    async with start(double, queues="arq:queue,low"):
        assert await (await double.enqueue(1)).result(timeout=30) == 2
        await eventually(lambda: "j_complete=1 " in (observer.get("low:health-check:w") or ""))
        assert observer.get("low:health-check:w").endswith(" j_complete=1 j_failed=0 j_retried=0 j_ongoing=0 queued=1")
        reader = MetricsReader(broker)
        for queue in ("arq:queue", "low"):
            await eventually(partial(has_done, reader, queue, 1))
            worker = (await reader.healthy_workers([queue]))["w"]
            assert (worker.jobs, worker.failed, worker.retried) == ((), 0, 0)
            assert worker.loop_lag < 0.5
            assert worker.last_heartbeat < 1
        assert 0 < observer.pttl("arq:queue:health-check:w") <= 4000
    assert not seen.well()
    assert not observer.exists("low:health-check:w")
    assert await reader.workers(["low"]) == []


async def has_done(reader: MetricsReader, queue: str, jobs: int) -> bool:
    return [worker.done for worker in (await reader.healthy_workers([queue])).values()] == [jobs]


async def test_a_worker_that_cannot_run_jobs_is_reported_and_not_healthy(start: StartWorker, broker: Broker) -> None:
    """Its report says why, and the health command stops counting it within 5 s."""
    reader, is_away = MetricsReader(broker), asyncio.Event()

    async def ask_database() -> None:
        if is_away.is_set():
            raise OSError

    async with start(double, ask_database=ask_database):
        await eventually(lambda: reader.healthy_workers(["arq:queue"]))
        is_away.set()
        await eventually(partial(has_none, reader), timeout=SOON)
        (worker,) = await reader.workers(["arq:queue"])
        assert (worker.state, worker.why) == (WorkerState.UNWELL, "the database does not answer")
        is_away.clear()
        await eventually(lambda: reader.healthy_workers(["arq:queue"]))


async def has_none(reader: MetricsReader) -> bool:
    return not await reader.healthy_workers(["arq:queue"])


async def test_a_health_record_being_written_while_the_worker_ends_is_still_removed(
    start: StartWorker, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten times of ten."""
    monkeypatch.setattr(health, "_INTERVAL", 0)
    for _ in range(10):
        async with start(double):
            await eventually(seen.well)
        assert not seen.well()


async def test_a_worker_whose_redis_is_out_of_memory_is_unhealthy_and_recovers(
    start: StartWorker, server: EmbeddedRedis, client: Any, queue_on_server: Broker
) -> None:
    """It is unhealthy within 5 s, keeps its jobs, and works once Redis has memory again."""
    began, go_on = asyncio.Event(), asyncio.Event()

    @task
    async def hold() -> str:
        began.set()
        await go_on.wait()
        return "held"

    async with start(hold, double, url=server.url):
        seen = Seen(client)
        held = await hold.enqueue()
        waiting = await double.using(delay=0.3).enqueue(1)
        await began.wait()
        await eventually(seen.well)
        client.config_set("maxmemory", 1)
        await eventually(lambda: not seen.well(), timeout=SOON)
        assert client.exists(f"arq:in-progress:{held.job_id}")
        go_on.set()
        assert await held.result(timeout=30) == "held"  # what ends makes room: it is taken
        client.config_set("maxmemory", 0)
        assert await waiting.result(timeout=SOON) == 2
        await eventually(seen.well, timeout=SOON)


async def test_a_worker_whose_redis_became_a_replica_is_unhealthy_and_recovers(
    start: StartWorker, server: EmbeddedRedis, client: Any, queue_on_server: Broker
) -> None:
    """It works once Redis is a primary again."""
    async with start(double, url=server.url):
        seen = Seen(client)
        await eventually(seen.well)
        waiting = await double.using(delay=0.3).enqueue(1)
        client.replicaof("127.0.0.1", "1")
        await eventually(lambda: not seen.well(), timeout=SOON)
        client.replicaof("NO", "ONE")
        assert await waiting.result(timeout=SOON) == 2
        await eventually(seen.well, timeout=2 * SOON)


async def test_a_worker_whose_redis_does_not_answer_is_unhealthy_and_recovers(
    server: EmbeddedRedis,
    client: Any,
    queue_on_server: Broker,
    fast_health_checks: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each call has a timeout. The running job ends, once, and other jobs run after it."""
    monkeypatch.setattr("worker.broker.connection.TIMEOUT", 0.5)
    runs: list[int] = []
    go_on = asyncio.Event()

    @task
    async def hold() -> str:
        runs.append(1)
        await go_on.wait()
        return "held"

    async with Proxy(server.url) as proxy:
        worker = Worker(proxy.url, hold, double, lease=60.0)
        worker.engine.start()
        try:
            held = await hold.enqueue()
            await eventually(lambda: runs and Seen(client).well())
            proxy.blackhole()
            go_on.set()
            await eventually(lambda: not Seen(client).well(), timeout=SOON)
            connected = proxy.connections
            await eventually(
                lambda: proxy.connections > connected + 2, timeout=10
            )  # calls have run into their timeouts
            await proxy.drop()
            await proxy.resume()
            assert await held.result(timeout=30) == "held"
            assert await (await double.enqueue(2)).result(timeout=30) == 4
            await eventually(Seen(client).well, timeout=SOON)
        finally:
            await worker.stop()
    assert runs == [1]


@pytest.mark.parametrize("how", ["refuses", "hangs"])
async def test_a_worker_whose_database_does_not_answer_is_unhealthy_and_recovers(
    start: StartWorker, broker: Broker, seen: Seen, how: str, fast_health_checks: None
) -> None:
    """It refuses connections, or hangs."""
    away = False

    async def ask() -> None:
        if away and how == "hangs":
            await asyncio.sleep(60)
        if away:
            raise ConnectionRefusedError

    async with start(double, ask_database=ask):
        await eventually(seen.well)
        away = True
        await eventually(lambda: not seen.well(), timeout=SOON + 1)
        away = False
        await eventually(seen.well, timeout=SOON)


async def test_a_worker_with_free_slots_that_claims_nothing_is_unhealthy(
    start: StartWorker, broker: Broker, seen: Seen, fast_health_checks: None
) -> None:
    """A worker whose slots are all taken is healthy."""
    began, go_on = asyncio.Event(), asyncio.Event()

    @task
    async def hold() -> None:
        began.set()
        await go_on.wait()

    async with start(hold, concurrency=1) as worker:
        await hold.enqueue()
        await began.wait()
        await asyncio.sleep(2 * health._FRESH)
        assert seen.well()
        for loop in worker.engine._loops._tasks.values():
            if loop.get_name() == "claimer":
                loop.cancel()
        go_on.set()
        await eventually(lambda: not seen.well(), timeout=8)

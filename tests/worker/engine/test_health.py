"""Health: the record is there for a worker that can really work, and for no other."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis

from tests.conftest import StartRedis
from tests.proxy import Proxy
from tests.waiting import eventually
from tests.worker.engine.conftest import Seen, StartWorker, Worker
from worker import Queue, task
from worker.embedded import EmbeddedRedis
from worker.engine import health

SOON = 5.0
"""Seconds within which whoever asks must hear the truth."""


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
async def queue_there(server: EmbeddedRedis) -> AsyncIterator[Queue]:
    """The default queue, on `server`."""
    queue = Queue(server.url, default=True)
    yield queue
    await queue.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that health goes by takes a fifth of its time."""
    monkeypatch.setattr(health, "_INTERVAL", 0.2)
    monkeypatch.setattr(health, "_LIFETIME", 800)
    monkeypatch.setattr(health, "_FRESH", 0.6)
    monkeypatch.setattr(health, "_DATABASE_TIMEOUT", 0.4)


async def test_record(start: StartWorker, queue: Queue, observer: Any, seen: Seen) -> None:
    """It tells what a worker does and has done, is kept with each of its queues, and goes when the worker ends."""
    await double.using(queue="low", delay=60).enqueue(1)
    async with start(double, queues="arq:queue,low"):
        assert await (await double.enqueue(1)).result(timeout=30) == 2
        await eventually(lambda: json.loads(observer.get("low:health-check:w") or '{"done": 0}')["done"])
        record = json.loads(observer.get("arq:queue:health-check:w"))
        assert record["queued"] == {"arq:queue": 0, "low": 1}
        assert (record["running"], record["done"], record["failed"], record["retried"]) == (0, 1, 0, 0)
        assert (record["redis"], record["database"]) == ("ok", "ok")
        assert record["loop_lag"] < 0.5
        assert record["last_heartbeat"] < 1
        assert 0 < observer.pttl("arq:queue:health-check:w") <= 4000
    assert not seen.well()
    assert not observer.exists("low:health-check:w")


async def test_record_goes_for_good(start: StartWorker, seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is just writing its record when it ends takes it back all the same, ten times of ten."""
    monkeypatch.setattr(health, "_INTERVAL", 0)
    for _ in range(10):
        async with start(double):
            await eventually(seen.well)
        assert not seen.well()


async def test_redis_out_of_memory(start: StartWorker, server: EmbeddedRedis, client: Any, queue_there: Queue) -> None:
    """A worker whose Redis takes no more writes is unwell within 5 s, keeps what it holds, and works after relief."""
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


async def test_redis_read_only(start: StartWorker, server: EmbeddedRedis, client: Any, queue_there: Queue) -> None:
    """A worker whose Redis has become a replica is unwell, and works once it is a primary again."""
    async with start(double, url=server.url):
        seen = Seen(client)
        await eventually(seen.well)
        waiting = await double.using(delay=0.3).enqueue(1)
        client.replicaof("127.0.0.1", "1")
        await eventually(lambda: not seen.well(), timeout=SOON)
        client.replicaof("NO", "ONE")
        assert await waiting.result(timeout=SOON) == 2
        await eventually(seen.well, timeout=2 * SOON)


async def test_redis_black_holed(
    server: EmbeddedRedis, client: Any, queue_there: Queue, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis that says nothing any more holds no call for ever: the job that runs ends, once, and others run after."""
    monkeypatch.setattr("worker.connection.TIMEOUT", 0.5)
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
async def test_database_away(start: StartWorker, queue: Queue, seen: Seen, how: str, hasty: None) -> None:
    """A worker whose database does not answer is unwell, and well again once it does."""
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


async def test_claimer_is_dead(start: StartWorker, queue: Queue, seen: Seen, hasty: None) -> None:
    """A worker that claims nothing although it has slots is unwell; one whose slots are all taken is not."""
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

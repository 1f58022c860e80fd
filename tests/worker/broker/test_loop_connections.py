"""Connections and event loops: each loop has its own connections and leaves none behind when it ends."""

import asyncio
import contextlib
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
import uvloop

from tests.tls import CERTIFICATE, in_tls
from tests.waiting import eventually
from tests.worker.new_jobs import new_job
from worker import Broker, task


@task
async def noop(number: int) -> int:
    return number


async def use(broker: Broker, job_id: str = "a") -> None:
    """Use all that a queue opens: the client, a dedicated connection and the subscription."""
    await broker.enqueue([new_job(job_id, b"{}", "arq:queue")])
    await broker.claim("arq:queue", "t" * 28, 1000, 1)
    async with broker.ended("arq:queue", job_id, asyncio.Event()):
        pass


def run_unfinished(use: Any) -> None:
    """Run on a loop and close it without ending its tasks and connections."""
    loop = asyncio.new_event_loop()
    loop.run_until_complete(use)
    loop.close()


def sockets() -> int:
    """Return how many sockets this process has open."""
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # that of the folder itself
            count += str(descriptor.readlink()).startswith("socket:")
    return count


class TestOneLoopAfterAnother:
    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
    def test_a_loop_that_ends_closes_its_connections(self, redis_url: str, run: Callable[[Any], None]) -> None:
        """A loop that ends in order closes its connections: none is left, and there is no warning."""
        broker = Broker(redis_url)
        before = sockets()
        for number in range(3):
            run(use(broker, str(number)))
            gc.collect()
            assert sockets() == before

    def test_connections_that_a_loop_left_open_are_dropped_by_the_next_use(self, redis_url: str) -> None:
        """Connections that a loop left open are dropped by the next use, without a warning."""
        broker = Broker(redis_url)
        before = sockets()
        for number in range(3):
            run_unfinished(use(broker, str(number)))
            gc.collect()
        asyncio.run(use(broker, "last"))
        gc.collect()
        assert sockets() == before

    async def test_tls_connections_that_a_loop_left_open_are_dropped_too(self, redis_url: str, observer: Any) -> None:
        """Encrypted connections that a loop left open are dropped too."""
        before = len(observer.client_list())
        async with in_tls(redis_url) as url:
            broker = Broker(f"{url}?ssl_ca_certs={CERTIFICATE}")
            await asyncio.to_thread(run_unfinished, use(broker))
            assert len(observer.client_list()) > before
            await asyncio.to_thread(asyncio.run, broker.close())
            gc.collect()
            await eventually(lambda: len(observer.client_list()), equals=before)

    def test_a_closed_broker_is_opened_again_by_its_next_use(self, redis_url: str) -> None:
        """A broker that was closed is opened again by its next use, on any loop."""
        broker = Broker(redis_url)

        async def once(job_id: str) -> list[bool]:
            for _ in range(2):
                added = await broker.enqueue([new_job(job_id, b"{}", "arq:queue")])
                await broker.close()
            return added

        assert asyncio.run(once("a")) == [False]
        assert asyncio.run(once("b")) == [False]


class TestLoopsBesideEachOther:
    def test_jobs_of_many_threads_with_loops_are_all_queued_and_no_connection_is_left(
        self, redis_url: str, observer: redis.Redis
    ) -> None:
        """Eight threads enqueue fifty jobs each by `asyncio.run`: all are queued, and no connection is left."""
        Broker(redis_url, default=True)

        def enqueue(thread: int) -> None:
            for number in range(50):
                asyncio.run(noop.enqueue(thread * 50 + number))

        observer.ping()
        before = sockets()
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(enqueue, range(8)))
        assert observer.zcard("arq:queue") == 400
        gc.collect()
        assert sockets() == before

    async def test_closing_on_one_loop_leaves_the_connections_of_other_loops_open(self, redis_url: str) -> None:
        """A loop that closes the queue closes only its own connections."""
        broker = Broker(redis_url)
        mine = broker.redis

        async def theirs() -> None:
            assert broker.redis is not mine
            await broker.ping()
            await broker.close()

        await broker.ping()
        await asyncio.to_thread(asyncio.run, theirs())
        assert broker.redis is mine
        await broker.ping()
        await broker.close()
        assert broker.redis is not mine

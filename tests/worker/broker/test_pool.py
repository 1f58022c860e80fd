"""The pool: a burst of calls shares a limited number of connections, and each call gets one in its turn."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis
from redis.asyncio import Redis

from tests.conftest import StartRedis
from tests.waiting import at_once, eventually
from tests.worker.new_jobs import new_job
from worker import Broker, task
from worker.broker.connection import connect_as
from worker.broker.pool import BoundedPool


@task
async def noop(number: int) -> int:
    return number


def with_options(url: str, options: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{options}"


@contextlib.asynccontextmanager
async def connected(url: str, options: str) -> AsyncIterator[Redis]:
    client = connect_as(Redis, with_options(url, options))
    try:
        yield client
    finally:
        await client.aclose()


def clients(observer: Any) -> int:
    """Return how many connections the server has, without the observer's own."""
    return len(observer.client_list()) - 1


async def test_a_burst_of_calls_shares_at_most_fifty_connections(redis_url: str, observer: Any) -> None:
    """Two thousand jobs enqueued at once, and their statuses: fifty connections, and no call fails."""
    broker = Broker(redis_url, default=True)
    before = clients(observer)
    jobs = await asyncio.gather(*(noop.enqueue(number) for number in range(2000)))
    assert observer.zcard("arq:queue") == 2000
    assert set(await asyncio.gather(*(job.status() for job in jobs))) == {"queued"}
    assert clients(observer) - before <= 50
    await broker.close()


async def test_max_connections_in_the_url_limits_the_connections(redis_url: str, observer: Any) -> None:
    """A hundred calls use as many connections as `max_connections` allows."""
    before = clients(observer)
    async with connected(redis_url, "max_connections=3") as client:
        assert await asyncio.gather(*(client.echo(str(number)) for number in range(100))) == [
            str(number).encode() for number in range(100)
        ]
        assert clients(observer) - before == 3


async def test_calls_get_a_connection_in_the_order_in_which_they_came(redis_url: str) -> None:
    """Calls have their turns in the order in which they came, also those that come while others wait."""
    answered: list[int] = []

    async def call(client: Redis, number: int) -> None:
        await client.ping()
        answered.append(number)

    async with connected(redis_url, "max_connections=1") as client:
        await asyncio.gather(*(call(client, number) for number in range(50)))
    assert answered == sorted(answered)


async def test_a_cancelled_call_passes_its_connection_on(redis_url: str) -> None:
    """A cancelled call delays no other call, whether it still waits or has just got a connection."""
    async with connected(redis_url, "max_connections=1") as client:
        for turns in range(30):
            calls = [asyncio.ensure_future(client.echo("x")) for _ in range(3)]
            for _ in range(turns):
                await asyncio.sleep(0)
            calls[0].cancel()
            calls[1].cancel()
            assert await at_once(calls[2])
            await asyncio.gather(*calls, return_exceptions=True)
        pool = client.connection_pool
        assert isinstance(pool, BoundedPool)
        assert not pool._in_use_connections


async def test_a_call_that_waits_too_long_for_a_connection_is_an_error_with_advice(
    redis_url: str, observer: Any
) -> None:
    """A call that gets no connection in time raises an error that says what to change."""
    async with connected(redis_url, "max_connections=1&timeout=0.2") as client:
        reading: asyncio.Future[Any] = asyncio.ensure_future(client.blpop(["nothing"], timeout=3))  # type: ignore[arg-type]
        await eventually(lambda: observer.info("clients")["blocked_clients"])
        with pytest.raises(redis.ConnectionError, match=r"all 1 connections .* in use for 0\.2 s.*max_connections"):
            await client.ping()
        observer.rpush("nothing", "x")
        assert await reading
        assert await client.ping()


async def test_a_waiting_call_gets_no_connection_to_a_former_primary(own_redis: StartRedis) -> None:
    """A waiting call does not get a connection over which other calls have been refused."""
    server = own_redis()
    broker = Broker(with_options(server.url, "max_connections=1"))
    await broker.ping()
    with redis.Redis.from_url(server.url) as other:
        other.replicaof("127.0.0.1", "1")
        before = other.info("stats")["total_connections_received"]
        calls = [broker.enqueue([new_job(str(number), b"{}", "arq:queue")]) for number in range(6)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(answer) for answer in answers] == [redis.ReadOnlyError] * 6
        assert other.info("stats")["total_connections_received"] - before >= 3
    await broker.close()


class TestAServerThatIsFull:
    async def test_no_call_fails_where_the_server_allows_fewer_connections_than_the_pool(
        self, own_redis: StartRedis
    ) -> None:
        """Where the server allows fewer connections than the pool, no call fails, and some are given back."""
        server = own_redis(maxclients=12)
        broker = Broker(server.url, default=True)
        assert await broker.enqueue([new_job("first", b"{}", "arq:queue")]) == [True]
        jobs = await asyncio.gather(*(noop.enqueue(number) for number in range(500)))
        assert len(jobs) == 500
        with redis.Redis.from_url(server.url) as other:
            assert other.zcard("arq:queue") == 501
            assert clients(other) <= 10
        await broker.close()

    async def test_a_full_server_is_an_error_at_once_where_the_pool_has_no_connection(
        self, own_redis: StartRedis
    ) -> None:
        """A pool without any connection to share raises the server's refusal at once."""
        server = own_redis(maxclients=1)
        async with connected(server.url, "max_connections=5") as one, connected(server.url, "timeout=20") as other:

            async def is_in() -> bool:
                with contextlib.suppress(redis.ConnectionError):  # the server may not have seen the last one leave
                    return bool(await one.ping())
                return False

            await eventually(is_in)
            with pytest.raises(redis.ConnectionError, match=r"takes no more clients \(maxclients\)"):
                await at_once(other.echo("x"))

    async def test_a_restart_of_the_server_does_not_shrink_the_pool(self, own_redis: StartRedis) -> None:
        """A restart of the server leaves the pool as large as it was."""
        server = own_redis()
        async with connected(server.url, "max_connections=5") as client:
            await asyncio.gather(*(client.echo("x") for _ in range(20)))
            server.kill()
            with pytest.raises(redis.ConnectionError):
                await client.echo("x")
            server.restart()
            await asyncio.gather(*(client.echo("x") for _ in range(20)))
            pool = client.connection_pool
            assert isinstance(pool, BoundedPool)
            assert pool._limit == 5

"""arq's client: what it lets pass, and what it does as any other."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis
from arq.connections import log_redis_info

from tests.proxy import Proxy
from tests.waiting import AT_ONCE
from worker.connection import connect_as
from worker.process.arq_client import ArqClient


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(redis_url) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[ArqClient]:
    """As arq is given it."""
    client = connect_as(ArqClient, proxy.url)
    client.connect_wait = 5.0
    yield client
    await client.aclose(close_connection_pool=True)


class TestLook:
    async def test_whose_connection_is_lost(self, client: ArqClient, proxy: Proxy) -> None:
        """It is sent again, whole."""
        trap = proxy.drop_on("^INFO", when="before")  # not CLIENT SETINFO
        said: list[str] = []
        await log_redis_info(client, said.append)
        assert trap.sprung
        assert "redis_version=" in said[0]
        assert "db_keys=0" in said[0]

    async def test_that_nobody_answers(
        self, client: ArqClient, proxy: Proxy, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It ends in its time, however long one command may take, in a line."""
        client.connect_wait = 0.3
        proxy.blackhole()
        with pytest.raises(SystemExit):
            async with asyncio.timeout(AT_ONCE):
                await log_redis_info(client, print)
        assert capsys.readouterr().err.startswith("REDIS_URL: no answer within 0.3 s (")

    async def test_is_the_first_and_no_transaction(self, client: ArqClient, proxy: Proxy) -> None:
        """What is sent before it, or after it, fails as redis-py says: nobody would know if it was done twice."""
        for _ in range(2):
            proxy.drop_on("INCR", when="after")
            with pytest.raises(redis.ConnectionError):
                async with client.pipeline(transaction=True) as pipe:
                    pipe.incr("a")
                    await pipe.execute()
            await log_redis_info(client, lambda _: None)
            proxy.drop_on("INCR", when="after")
            with pytest.raises(redis.ConnectionError):
                async with client.pipeline(transaction=False) as pipe:
                    pipe.incr("a")
                    await pipe.execute()
        assert await client.get("a") == b"4"


async def test_forgets_no_health_record_that_arq_has_not_written(client: ArqClient) -> None:
    """Nothing is sent; any other key goes."""
    key = "arq:queue:health-check:me"
    await client.mset({key: "ours", "a": "b"})
    assert await client.delete(key) == 0
    assert await client.delete("a") == 1
    assert await client.get(key) == b"ours"

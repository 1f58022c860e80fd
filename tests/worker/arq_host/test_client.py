"""`ArqClient`, the client that arq's worker is given: which requests it repeats, and which it passes on."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis
from arq.connections import log_redis_info

from tests.proxy import Proxy
from tests.waiting import AT_ONCE
from worker.arq_host.client import ArqClient
from worker.broker.connection import connect_as


@pytest.fixture
async def proxy(redis_url: str) -> AsyncIterator[Proxy]:
    async with Proxy(redis_url) as proxy:
        yield proxy


@pytest.fixture
async def client(proxy: Proxy) -> AsyncIterator[ArqClient]:
    """The client as arq is given it."""
    client = connect_as(ArqClient, proxy.url)
    client.connect_wait = 5.0
    yield client
    await client.aclose(close_connection_pool=True)


class TestStartupInfo:
    async def test_the_startup_info_is_requested_again_after_a_lost_connection(
        self, client: ArqClient, proxy: Proxy
    ) -> None:
        """The whole pipeline is sent again."""
        trap = proxy.drop_on("^INFO", when="before")  # not CLIENT SETINFO
        said: list[str] = []
        await log_redis_info(client, said.append)
        assert trap.sprung
        assert "redis_version=" in said[0]
        assert "db_keys=0" in said[0]

    async def test_a_startup_info_without_an_answer_ends_after_connect_wait(
        self, client: ArqClient, proxy: Proxy, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It ends with one line after `connect_wait`, however long a single command may take."""
        client.connect_wait = 0.3
        proxy.blackhole()
        with pytest.raises(SystemExit):
            async with asyncio.timeout(AT_ONCE):
                await log_redis_info(client, print)
        assert capsys.readouterr().err.startswith("REDIS_URL: no answer within 0.3 s (")

    async def test_other_pipelines_are_not_sent_again_after_a_lost_connection(
        self, client: ArqClient, proxy: Proxy
    ) -> None:
        """A pipeline before or after it fails as redis-py says: its commands might be executed twice."""
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


async def test_delete_keeps_tandems_health_record_and_deletes_other_keys(client: ArqClient) -> None:
    """arq deletes the health record that it has not written: nothing is sent. Any other key is deleted."""
    key = "arq:queue:health-check:me"
    await client.mset({key: "ours", "a": "b"})
    assert await client.delete(key) == 0
    assert await client.delete("a") == 1
    assert await client.get(key) == b"ours"

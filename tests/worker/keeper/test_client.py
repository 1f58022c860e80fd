"""The keeper's client: it reaches every Redis that the worker reaches, and each call has a timeout."""

import asyncio
import socket
from typing import Any

import pytest
import redis

from tests.conftest import StartRedis
from tests.proxy import Proxy
from tests.sentinel import Sentinel
from tests.stopwatch import Stopwatch
from tests.tls import CERTIFICATE, in_tls
from tests.waiting import AT_ONCE, eventually
from tests.worker.broker.test_connection import cluster, nodes, sentinel
from worker.embedded import EmbeddedRedis
from worker.keeper.client import Redis, RefusedError
from worker.keeper.servers import servers_of

__all__ = ["cluster", "nodes", "sentinel"]  # fixtures

APPEND = "return redis.call('APPEND', KEYS[1], ARGV[1])"


def run(url: str, script: str = APPEND, key: str = "key", timeout: float = 5.0) -> Any:
    return Redis(servers_of(url), timeout).run(script, key, ["words"])


async def test_the_client_logs_in_by_password_or_user_and_uses_the_database_of_the_url(own_redis: StartRedis) -> None:
    """A wrong password is an error."""
    server = own_redis()
    with redis.Redis.from_url(server.url) as client:
        client.acl_setuser("some+one", enabled=True, passwords=["+p/w"], commands=["+@all"], keys=["*"])
        client.config_set("requirepass", "alone")
        place = f"127.0.0.1:{server.port}/3"
        assert await asyncio.to_thread(run, f"redis://some%2Bone:p%2Fw@{place}") == 5
        assert await asyncio.to_thread(run, f"redis://:alone@{place}") == 10
        client.execute_command("AUTH", "alone")
        client.select(3)
        assert client.get("key") == b"words" * 2
        with pytest.raises(RefusedError, match="WRONGPASS"):
            await asyncio.to_thread(run, f"redis://:wrong@{place}")
        client.config_set("requirepass", "")


async def test_the_client_reaches_a_server_by_its_unix_socket(redis_url: str) -> None:
    """The URL holds the path of the socket."""
    assert redis_url.startswith("unix://")
    assert await asyncio.to_thread(run, redis_url) == 5


async def test_over_tls_the_client_trusts_only_the_certificates_that_the_url_names(redis_url: str) -> None:
    """Without them the connection fails."""
    async with in_tls(redis_url) as url:
        assert await asyncio.to_thread(run, f"{url}?ssl_ca_certs={CERTIFICATE}") == 5
        with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
            await asyncio.to_thread(run, url)


async def test_the_client_asks_the_next_sentinel_for_the_primary_if_one_does_not_answer(sentinel: Sentinel) -> None:
    """Then it writes to the primary."""
    await eventually(sentinel.primary_port)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis+sentinel://127.0.0.1:{silent.getsockname()[1]},127.0.0.1:{sentinel.port}/main/0"
        assert await asyncio.to_thread(run, url, timeout=2.0) == 5
    with redis.Redis.from_url(sentinel.primary.url) as client:
        assert client.get("key") == b"words"


async def test_in_a_cluster_the_client_goes_to_the_node_that_holds_the_key(
    nodes: list[EmbeddedRedis], cluster: str
) -> None:
    """Whichever node it asks first."""
    for node in nodes:
        for tag in "abc":
            await asyncio.to_thread(run, f"redis+cluster://127.0.0.1:{node.port}", key=f"{{{tag}}}")
    with redis.RedisCluster.from_url(cluster.replace("redis+cluster", "redis").split(",", maxsplit=1)[0]) as client:
        assert [client.get(f"{{{tag}}}") for tag in "abc"] == [b"words" * len(nodes)] * 3


async def test_a_server_that_does_not_answer_ends_the_call_at_its_timeout(redis_url: str) -> None:
    """Whether the connection is open or not."""
    async with Proxy(redis_url) as proxy:
        assert await asyncio.to_thread(run, proxy.url) == 5
        proxy.blackhole()
        watch = Stopwatch()
        with pytest.raises(OSError, match=r"timed out|no answer"):
            await asyncio.to_thread(run, proxy.url, timeout=1.0)
        assert 0.9 < watch.seconds < 1 + AT_ONCE


async def test_an_error_of_the_server_is_raised_with_its_message(redis_url: str) -> None:
    """As `RefusedError`."""
    with pytest.raises(RefusedError, match="no luck"):
        await asyncio.to_thread(run, redis_url, "return redis.error_reply('no luck')")

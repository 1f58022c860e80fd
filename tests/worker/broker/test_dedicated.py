"""A dedicated connection to Redis, and what happens when it is lost."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tests.conftest import StartRedis
from tests.proxy import Proxy
from tests.stopwatch import Stopwatch
from tests.waiting import eventually
from worker.broker import dedicated as module
from worker.broker.connection import connect_as
from worker.broker.dedicated import DedicatedConnection


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    client = connect_as(Redis, redis_url)
    yield client
    await client.aclose()


@pytest.fixture
async def connection(client: Redis) -> AsyncIterator[DedicatedConnection]:
    connection = DedicatedConnection(client)
    yield connection
    await connection.close()


async def connection_of(connection: DedicatedConnection) -> str:
    """Return the server's id of the connection."""
    return str(await connection.execute_command("CLIENT", "ID"))


async def test_concurrent_commands_share_one_connection_in_order(connection: DedicatedConnection) -> None:
    """Commands of several callers are sent over one connection, one after the other."""
    assert await asyncio.gather(*(connection.execute_command("ECHO", str(number)) for number in range(20))) == [
        str(number).encode() for number in range(20)
    ]
    assert await connection_of(connection) == await connection_of(connection)


async def test_a_refused_command_raises_and_keeps_the_connection(connection: DedicatedConnection) -> None:
    """A command that the server refuses raises its error; the connection is kept."""
    before = await connection_of(connection)
    with pytest.raises(ResponseError, match="unknown command"):
        await connection.execute_command("NONSENSE")
    assert await connection_of(connection) == before


async def test_a_connection_that_was_closed_while_idle_is_replaced_without_an_error(
    connection: DedicatedConnection, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that the server has closed while it was idle is opened again without an error."""
    monkeypatch.setattr(module, "_IDLE", 0.0)
    before = await connection_of(connection)
    await client.client_kill_filter(_id=before)
    assert before not in [each["id"] for each in await client.client_list()]
    assert await connection_of(connection) != before


async def test_a_connection_that_is_lost_during_a_command_is_an_error_and_is_replaced(
    connection: DedicatedConnection, observer: Any
) -> None:
    """A connection that is lost during a command is an error, and the next command has another one."""
    before = await connection_of(connection)
    waiting = asyncio.create_task(connection.execute_command("BLPOP", "nothing", 0))
    await eventually(lambda: any(client["cmd"] == "blpop" for client in observer.client_list()))
    observer.client_kill_filter(_id=before)
    with pytest.raises(RedisConnectionError):
        await waiting
    assert await connection_of(connection) != before


async def test_a_command_without_an_answer_is_given_up_with_its_connection(redis_url: str, observer: Any) -> None:
    """A command that takes too long is given up with its connection; no other command gets its late answer."""
    client = connect_as(Redis, f"{redis_url}{'&' if '?' in redis_url else '?'}socket_timeout=0.2")
    connection = DedicatedConnection(client)
    watch = Stopwatch()
    with pytest.raises(RedisTimeoutError, match=r"no answer within 0\.2 s"):
        await connection.execute_command("BLPOP", "late", 0)
    assert watch.seconds_running < 2
    observer.rpush("late", "x")
    assert await connection.execute_command("ECHO", "y") == b"y"
    await connection.close()
    await client.aclose()


async def test_no_other_command_gets_the_late_answer_of_a_cancelled_one(
    connection: DedicatedConnection, observer: Any
) -> None:
    """A cancelled command's late answer is not taken for the next command's answer."""
    waiting = asyncio.create_task(connection.execute_command("BLPOP", "late", 0))
    await eventually(lambda: any(client["cmd"] == "blpop" for client in observer.client_list()))
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    observer.rpush("late", "x")
    assert await connection.execute_command("ECHO", "y") == b"y"


async def test_commands_fail_while_the_server_is_down_and_work_once_it_is_back(own_redis: StartRedis) -> None:
    """While the server is down each command fails; once it is back, commands work."""
    server = own_redis()
    client = connect_as(Redis, server.url)
    connection = DedicatedConnection(client)
    assert await connection.execute_command("PING") == b"PONG"
    server.kill()
    for _ in range(2):
        with pytest.raises((RedisConnectionError, OSError)):
            await connection.execute_command("PING")
    server.restart()
    assert await connection.execute_command("PING") == b"PONG"
    await connection.close()
    await client.aclose()


async def test_the_time_to_send_a_large_command_is_not_taken_for_silence(redis_url: str) -> None:
    """The time that a large command takes to be sent is not taken for a server that does not answer."""
    async with Proxy(redis_url) as proxy:
        proxy.rate = 2_000_000  # bytes a second
        client = connect_as(Redis, f"{proxy.url}?socket_timeout=0.5")
        connection = DedicatedConnection(client)
        large = b"x" * 3_000_000
        assert await connection.execute_command("ECHO", large) == large
        await connection.close()
        await client.aclose()

"""What the other tests stand on: the fixtures, the proxy and the pooler."""

import asyncio
from pathlib import Path

import asyncpg
import psutil
import pytest
import redis.asyncio
from sqlalchemy import make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.commands import Command
from tests.conftest import StartPostgres, StartRedis
from tests.pooler import Pooler
from tests.proxy import Proxy, When
from tests.servers import Observer, as_dsn
from tests.stopwatch import Stopwatch
from tests.waiting import eventually

_STOPS = """
import os, signal, time
from tests.stopwatch import Stopwatch

watch = Stopwatch()
time.sleep(0.5)
print(f"blocked {watch.seconds} {watch.seconds_running}", flush=True)
watch = Stopwatch()
os.kill(os.getpid(), signal.SIGSTOP)
print(f"stopped {watch.seconds} {watch.seconds_running}")
"""


async def test_a_stopwatch_does_not_count_the_time_that_a_process_was_stopped(tmp_path: Path) -> None:
    """A process that is stopped has lost them; one that blocks has not."""
    (tmp_path / "stops.py").write_text(_STOPS)
    with Command("stops", folder=tmp_path, environment={}) as program:
        await program.says("blocked")
        process = psutil.Process(program.pid)
        await eventually(process.status, equals=psutil.STATUS_STOPPED)
        watch = Stopwatch()
        await eventually(lambda: watch.seconds > 1)
        process.resume()
        assert await program.ends() == 0
        blocked, stopped = (list(map(float, line.split()[1:])) for line in program.output.splitlines())
    assert blocked[1] > 0.4
    assert stopped[0] > 1
    assert stopped[1] < stopped[0] - 0.8


async def connect(url: str) -> "asyncpg.Connection[asyncpg.Record]":
    return await asyncpg.connect(as_dsn(make_url(url)))


async def test_each_test_gets_an_empty_database_and_an_observer(database_url: str, postgres: Observer) -> None:
    """Each test gets a database of its own, with the ledger alone, and sees from outside who is connected to it."""
    tables = await postgres.fetch("SELECT tablename AS name FROM pg_tables WHERE schemaname = 'public'")
    assert {table["name"] for table in tables} == {
        "tandem_jobs",
        "tandem_jobs_audit",
        "tandem_jobs_pauses",
        "tandem_jobs_version",
    }
    assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs") == 0
    assert await postgres.backends() == 0
    engine = create_async_engine(database_url)
    async with engine.begin() as connection:
        await connection.execute(text("CREATE TABLE t AS SELECT 1 AS a"))
        assert await postgres.idle_in_transaction() == 1
    assert await postgres.backends("idle") == 1
    assert await postgres.terminate_backends() == 1
    await eventually(postgres.backends, equals=0)
    await engine.dispose()
    assert await postgres.fetchval("SELECT count(*) FROM t") == 1


@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_proxy_drops_a_connection_before_or_after_its_commit(
    database_url: str, postgres: Observer, when: When
) -> None:
    """A trap on COMMIT cuts the connection before the server commits, or after: the client cannot tell."""
    await postgres.execute("CREATE TABLE t (a int)")
    async with Proxy(database_url) as proxy:
        trap = proxy.drop_on("^COMMIT", when=when)
        client = await connect(proxy.url)
        with pytest.raises((asyncpg.ConnectionDoesNotExistError, ConnectionError)):
            async with client.transaction():
                await client.execute("INSERT INTO t VALUES ($1)", 7)
        assert trap.sprung
        await eventually(postgres.backends, equals=0)
        assert await postgres.fetchval("SELECT count(*) FROM t") == (when == "after")
        assert proxy.statements == ["BEGIN;", "INSERT INTO t VALUES ($1)", "COMMIT;"]
        client = await connect(proxy.url)
        async with client.transaction():
            await client.execute("INSERT INTO t VALUES ($1)", 8)
        await client.close()
        assert proxy.count("INSERT") == 2
        assert proxy.connections == 2


async def test_the_proxy_drops_refuses_swallows_and_resumes(database_url: str) -> None:
    """The proxy can drop, refuse, swallow in silence, and deliver late what it has swallowed."""
    async with Proxy(database_url) as proxy:
        client = await connect(proxy.url)
        proxy.blackhole()
        with pytest.raises(TimeoutError):
            await client.fetchval("SELECT 1", timeout=0.05)
        await proxy.resume()
        late = await connect(proxy.url)
        proxy.blackhole()
        answer = asyncio.create_task(late.fetchval("SELECT 2"))
        await eventually(lambda: proxy.count("SELECT 2") == 0 and not answer.done())
        await proxy.resume()
        assert await answer == 2
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await connect(proxy.url)
        assert await late.fetchval("SELECT 3") == 3
        await proxy.drop()
        with pytest.raises(asyncpg.InterfaceError):
            await late.fetchval("SELECT 4")
        await client.close(timeout=1)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_the_proxy_drops_a_redis_connection_before_or_after_a_command(redis_url: str, when: When) -> None:
    """In front of Redis, too, a command is cut before it is executed or after."""
    async with Proxy(redis_url) as proxy, redis.asyncio.Redis.from_url(redis_url) as direct:
        client = redis.asyncio.Redis.from_url(proxy.url)
        await client.set("a", "b")
        trap = proxy.drop_on("^INCRBY counter", when=when)
        with pytest.raises(redis.asyncio.ConnectionError):
            await client.incr("counter")
        assert trap.sprung
        assert await direct.exists("counter") == (when == "after")
        assert await client.get("a") == b"b"
        await client.aclose()


async def test_the_pooler_lends_its_backend_for_one_transaction(database_url: str, postgres: Observer) -> None:
    """Clients take turns on one backend, each for a transaction, and leave behind what they have set."""
    async with Pooler(database_url) as pooler:
        one, two = await connect(pooler.url), await connect(pooler.url)
        async with one.transaction():
            backend = await one.fetchval("SELECT pg_backend_pid()")
            waits = asyncio.create_task(two.fetchval("SELECT pg_backend_pid()"))
            await one.execute("SET lock_timeout = 1234")
            assert not waits.done()
        assert await waits == backend
        assert await two.fetchval("SHOW lock_timeout") == "1234ms"
        assert await postgres.backends() == 1
        await (await one.prepare("SELECT 2", name="mine")).fetchval()
        with pytest.raises(asyncpg.DuplicatePreparedStatementError):
            await two.prepare("SELECT 2", name="mine")
        await one.close()
        await two.close()
        assert await postgres.backends("idle") == 1


async def test_the_pooler_refuses_startup_settings_as_pgbouncer_does(database_url: str) -> None:
    """A setting sent with the start of a session is refused, in PgBouncer's words."""
    async with Pooler(database_url) as pooler:
        with pytest.raises(asyncpg.ProtocolViolationError, match="unsupported startup parameter: statement_timeout"):
            await asyncpg.connect(as_dsn(make_url(pooler.url)), server_settings={"statement_timeout": "1s"})


async def test_the_pooler_cancels_statements_and_rolls_back_abandoned_transactions(
    database_url: str, postgres: Observer
) -> None:
    """A cancelled statement ends on the server; a client that leaves in a transaction takes the backend with it."""
    async with Pooler(database_url) as pooler:
        client = await connect(pooler.url)
        with pytest.raises(TimeoutError):
            await client.execute("SELECT pg_sleep(30)", timeout=0.05)
        assert await client.fetchval("SELECT 1") == 1
        await client.execute("BEGIN")
        client.terminate()
        await eventually(postgres.backends, equals=0)
        client = await connect(pooler.url)
        await postgres.terminate_backends()
        await eventually(postgres.backends, equals=0)
        assert await client.fetchval("SELECT 2") == 2
        await client.execute("BEGIN")
        await postgres.terminate_backends()
        # The last one is what asyncpg says if it learns of the end while it sends.
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)):
            await client.execute("SELECT 3")


async def test_a_tests_own_servers_restart_at_the_same_address(
    own_postgres: StartPostgres, own_redis: StartRedis
) -> None:
    """A test's own servers can be killed and restarted; what PostgreSQL has committed is still there."""
    postgres = own_postgres(max_connections=20)
    client = await connect(postgres.url)
    assert await client.fetchval("SHOW max_connections") == "20"
    await client.execute("CREATE TABLE t AS SELECT 1 AS a")
    postgres.kill()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, ConnectionError)):
        await client.execute("SELECT 1")
    with pytest.raises(ConnectionRefusedError):
        await connect(postgres.url)
    postgres.restart()
    client = await connect(postgres.url)
    assert await client.fetchval("SELECT a FROM t") == 1
    await client.close()

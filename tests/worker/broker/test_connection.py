"""Connections: TLS, Sentinel with a real failover, a real cluster, and a user with few permissions."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
import redis
import redis.asyncio
import uvloop
from redis.crc import key_slot

from db.aio.cancellation import shielded
from tests.conftest import StartRedis
from tests.proxy import Proxy
from tests.redis_programs import PROGRAMS, running
from tests.sentinel import Sentinel, follow
from tests.tls import CERTIFICATE, in_tls
from tests.waiting import AT_ONCE, at_once, eventually
from tests.worker.engine.conftest import Worker
from tests.worker.new_jobs import new_job
from worker import Broker, Job, WorkerError, task
from worker.broker.connection import (
    close,
    close_sync,
    connect,
    connect_as,
    connect_sync,
)
from worker.broker.dedicated import DedicatedConnection
from worker.broker.epochs import Epochs
from worker.broker.queue_state import QueueInspector
from worker.embedded import EmbeddedRedis
from worker.metrics.reader import HOUR, MetricsReader
from worker.process.errors import StartupError
from worker.process.server_wait import await_redis

REPOSITORY = Path(__file__).parents[3]


@task
async def double(number: int) -> int:
    return 2 * number


@contextlib.asynccontextmanager
async def working(url: str, *tasks: Any, **settings: Any) -> AsyncIterator[Worker]:
    """A worker, and the default queue, at this URL."""
    broker = Broker(url, default=True, name=settings.get("queue", "arq:queue"))
    worker = Worker(url, *(tasks or (double,)), **settings)
    worker.engine.start()
    try:
        yield worker
    finally:
        await worker.stop()
        await broker.close()


class TestCommands:
    async def test_commands_of_two_words_reach_the_server(self, redis_url: str) -> None:
        """The server understands the commands that redis-py writes as two words."""
        client = connect(redis_url)
        assert await client.config_get("maxmemory") == {"maxmemory": "0"}
        await client.aclose()

    async def test_a_value_that_redis_cannot_store_is_refused(self, redis_url: str) -> None:
        """A value that Redis cannot store raises redis-py's own error."""
        client = connect(redis_url)
        with pytest.raises(redis.DataError):
            await client.set("a", None)  # type: ignore[arg-type]
        await client.aclose()


class TestTls:
    async def test_jobs_run_over_tls_with_a_trusted_certificate(self, redis_url: str) -> None:
        """Jobs run over TLS if the certificate is trusted."""
        async with in_tls(redis_url) as url, working(f"{url}?ssl_ca_certs={CERTIFICATE}") as worker:
            assert await (await double.enqueue(4)).result(timeout=30) == 8
            assert worker.broker.url.startswith("rediss://")

    async def test_an_untrusted_certificate_is_refused(self, redis_url: str) -> None:
        """A connection with an untrusted certificate is refused."""
        async with in_tls(redis_url) as url:
            client = connect(url)
            with pytest.raises(redis.ConnectionError, match="certificate verify failed"):
                await client.ping()
            await client.aclose()


class TestRefusedConnections:
    """What a server refuses while a connection opens: over TCP and a Unix socket, at the first try and later."""

    @pytest.fixture(params=["tcp", "unix"])
    def address(self, request: pytest.FixtureRequest) -> Iterator[str]:
        with EmbeddedRedis(tcp=request.param == "tcp") as server:
            yield server.url.removesuffix("/0").partition("?")[0]

    async def test_a_database_number_out_of_range_is_an_error(self, address: str) -> None:
        """A missing database is not replaced by database 0."""
        broker = Broker(f"{address}?db=99")
        for _ in range(2):
            with pytest.raises(redis.ResponseError, match="DB index is out of range"):
                await broker.ping()
            with pytest.raises(redis.ResponseError, match="DB index is out of range"):
                await broker.enqueue([new_job("a", b"{}", "q")])
        await broker.close()

    async def test_a_wrong_password_is_an_authentication_error(self, address: str) -> None:
        """A wrong password raises redis-py's `AuthenticationError`."""
        scheme, _, place = address.partition("://")
        broker = Broker(f"{scheme}://nobody:wrong@{place}")
        for _ in range(2):
            with pytest.raises(redis.AuthenticationError):
                await broker.ping()
        await broker.close()


@pytest.fixture
def sentinel(own_redis: StartRedis, tmp_path: Path) -> Iterator[Sentinel]:
    with contextlib.closing(Sentinel(own_redis, tmp_path)) as sentinel:
        yield sentinel


async def lose(connection: Any) -> None:
    """Let the connection's transport close, as it does where it reads that the connection is reset."""
    connection._writer.transport.abort()
    with contextlib.suppress(OSError):
        await connection._writer.wait_closed()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_writing_to_a_lost_connection_raises_redis_pys_connection_error(
    redis_url: str, run: Callable[[Coroutine[Any, Any, None]], None]
) -> None:
    """A write to a lost connection raises redis-py's `ConnectionError`, whatever the transport raises."""

    async def write_to_lost_one() -> None:
        async with contextlib.aclosing(connect_as(redis.asyncio.Redis, redis_url)) as client:
            connection = client.connection_pool.make_connection()
            await connection.connect()
            await lose(connection)
            with pytest.raises(redis.ConnectionError):
                await connection.send_command("PING", check_health=False)
            await connection.disconnect()

    with ThreadPoolExecutor(1) as threads:  # this thread runs a loop already
        threads.submit(run, write_to_lost_one()).result()


async def test_cleanup_after_a_cancellation_reaches_redis_and_can_be_cancelled_again(redis_url: str) -> None:
    """Cleanup code in a cancelled task can use Redis; a second cancellation takes effect at any moment."""
    async with contextlib.aclosing(connect_as(redis.asyncio.Redis, redis_url)) as client:
        await client.ping()
        reached = asyncio.Event()

        async def work() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await client.ping()
                reached.set()
                while True:
                    await client.ping()

        working = asyncio.create_task(work())
        await asyncio.sleep(0)
        working.cancel()
        await at_once(reached.wait())
        working.cancel()
        await eventually(working.cancelled, timeout=AT_ONCE)


async def test_a_cancellation_that_waited_for_a_commit_takes_effect_in_the_redis_commands_after_it(
    redis_url: str,
) -> None:
    """A cancellation that waited for a COMMIT takes effect in a task that then only sends Redis commands."""
    async with contextlib.aclosing(connect_as(redis.asyncio.Redis, redis_url)) as client:
        await client.ping()
        committing = asyncio.Event()

        async def commit() -> None:
            committing.set()
            await asyncio.sleep(0.05)

        async def work() -> None:
            await shielded(commit())
            while True:
                await client.ping()

        working = asyncio.create_task(work())
        await committing.wait()
        working.cancel()
        await eventually(working.cancelled, timeout=AT_ONCE)


@pytest.mark.parametrize("turns", range(6))
async def test_an_anyio_cancel_scope_around_a_command_ends_by_itself(redis_url: str, turns: int) -> None:
    """A scope that is cancelled in any iteration of the event loop during a command ends, and its task goes on."""
    async with contextlib.aclosing(connect_as(redis.asyncio.Redis, redis_url)) as client:
        await client.ping()
        loop = asyncio.get_running_loop()

        def cancel_in(turns: int) -> None:
            if turns:
                loop.call_soon(cancel_in, turns - 1)
            else:
                limit.cancel()

        with anyio.CancelScope() as limit:
            cancel_in(turns)
            while True:
                await client.ping()
        assert limit.cancelled_caught
        assert await client.ping()


async def test_a_silent_sentinel_is_skipped_for_the_next_one(
    sentinel: Sentinel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the first Sentinel accepts the connection and does not answer, the next one is asked."""
    monkeypatch.setattr("worker.broker.connection.TIMEOUT", 0.5)
    await eventually(sentinel.primary_port)
    async with Proxy(f"redis://127.0.0.1:{sentinel.port}") as silent:
        silent.blackhole()
        url = f"redis+sentinel://127.0.0.1:{urlsplit(silent.url).port},127.0.0.1:{sentinel.port}/main/0"
        client = connect_as(redis.asyncio.Redis, url)
        line = DedicatedConnection(client)
        assert await line.execute_command("ECHO", "here") == b"here"
        await line.close()
        await close(client)


async def test_jobs_run_and_leases_hold_through_two_sentinel_failovers(sentinel: Sentinel) -> None:
    """Jobs run and leases hold through two failovers: the first primary becomes a replica, the second one is killed."""
    began, go_on = asyncio.Event(), asyncio.Event()
    runs: list[int] = []

    @task
    async def hold() -> str:
        runs.append(1)
        began.set()
        await go_on.wait()
        return "held"

    await eventually(sentinel.knows_a_good_replica, timeout=20)
    first, second = sentinel.primary, sentinel.replica
    async with working(sentinel.url, hold, double, lease=2.0) as worker:
        assert await (await double.enqueue(1)).result(timeout=30) == 2
        held = await hold.enqueue()
        await began.wait()
        await eventually(lambda: replicated(first))
        sentinel.fail_over()
        await eventually(sentinel.primary_port, timeout=40, equals=second.port)
        follow(second, first)  # as the Sentinel would itself, ten seconds later
        await eventually(lambda: runs_now(worker, 2), timeout=10)
        await eventually(lambda: replicated(second))
        second.kill()
        await eventually(sentinel.primary_port, timeout=40, equals=first.port)
        await eventually(lambda: runs_now(worker, 3), timeout=10)
        go_on.set()
        assert await held.result(timeout=30) == "held"
    assert runs == [1]


async def runs_now(worker: Worker, number: int) -> bool:
    """Return whether a job can be enqueued and runs."""
    try:
        return await (await double.enqueue(number)).result(timeout=1) == 2 * number
    except (redis.RedisError, OSError, WorkerError, TimeoutError):
        return False


def replicated(server: EmbeddedRedis) -> bool:
    """Return whether a replica has received the primary's last write."""
    with redis.Redis.from_url(server.url) as client:
        client.set("last", "write")
        return bool(client.wait(1, 500))


@pytest.fixture
async def nodes(own_redis: StartRedis) -> list[EmbeddedRedis]:
    """Three nodes of a cluster that have shared the slots among them."""
    options: dict[str, str | int] = {"cluster-enabled": "yes", "cluster-node-timeout": 2000}
    nodes = [own_redis(**options) for _ in range(3)]
    with contextlib.ExitStack() as open_:
        clients = [open_.enter_context(redis.Redis.from_url(node.url, decode_responses=True)) for node in nodes]
        for number, client in enumerate(clients):
            client.execute_command("CLUSTER", "ADDSLOTS", *range(number, 16_384, 3))
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", str(nodes[0].port))
        await eventually(
            lambda: (
                all("cluster_state:ok" in str(client.execute_command("CLUSTER", "INFO")) for client in clients)
                and all(client.execute_command("CLUSTER", "NODES").count("connected") == 3 for client in clients)
            ),
            timeout=20,
        )
    return nodes


@pytest.fixture
def cluster(nodes: list[EmbeddedRedis]) -> str:
    """The cluster's URL."""
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in nodes)


async def test_a_worker_waits_for_a_killed_cluster_and_runs_jobs_once_it_is_back(
    nodes: list[EmbeddedRedis], cluster: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A worker waits for a killed cluster as for any other Redis, and runs jobs once it is back."""
    async with working(cluster, queue="{mail}") as worker:
        assert await (await double.enqueue(4)).result(timeout=30) == 8
        for node in nodes:
            node.kill()
        await eventually(lambda: "waits for Redis" in caplog.text, timeout=20)
        with pytest.raises(redis.RedisError):
            await worker.broker.depth("{mail}")
        for node in nodes:
            node.restart()
        job = await eventually_enqueued(worker.broker)
        assert await job.result(timeout=20) == 10
    assert "failed; it is started again" not in caplog.text


async def test_workers_of_a_cluster_measure_the_jobs_of_each_queue(cluster: str) -> None:
    """Two queues on two nodes: counts, ended jobs and workers of each."""
    queues = ["{mail}", "{reports}"]
    async with working(cluster, queue="{mail}", queues=",".join(queues)) as worker:
        jobs = [await double.using(queue=queue).enqueue(4) for queue in queues]
        for job in jobs:
            assert await job.result(timeout=30) == 8
        await worker.idle()
        await worker.engine._reporter.report()
        reader = MetricsReader(worker.broker)
        series = await reader.throughput(HOUR, queues)
        assert [each.total.outcomes for each in series] == [{"completed": 1}] * 2
        assert [(each.queue, each.task) for each in await reader.by_task(HOUR, queues)] == [
            (queue, "double") for queue in queues
        ]
        assert [[job.id for job in await reader.latest(queue)] for queue in queues] == [[job.job_id] for job in jobs]
        assert [each.id for each in await reader.workers(queues)] == ["w"]
        inspector = QueueInspector(worker.broker.connections)
        assert [(await inspector.snapshot(queue)).depth for queue in queues] == [0, 0]
        await worker.drain()
        assert await reader.workers(queues) == []


async def test_a_cluster_of_one_node_is_waited_for_and_found_again_after_a_restart(own_redis: StartRedis) -> None:
    """A start waits until the node has slots; after a restart of the node the worker finds it again."""
    options: dict[str, str | int] = {"cluster-enabled": "yes"}
    node = own_redis(**options)
    url = f"redis+cluster://127.0.0.1:{node.port}"
    with pytest.raises(StartupError, match=r"REDIS_URL: no answer within 0\.3 s"):
        await_redis(url, 0.3)
    with redis.Redis.from_url(node.url, decode_responses=True) as admin:
        admin.execute_command("CLUSTER", "ADDSLOTS", *range(16_384))
        await eventually(lambda: "cluster_state:ok" in str(admin.execute_command("CLUSTER", "INFO")), timeout=20)
    async with working(url, queue="{mail}") as worker:
        client = connect_sync(url)
        node.kill()
        with pytest.raises(redis.RedisError):
            client.get("{mail}")
        close_sync(client)
        for verb in (
            worker.broker.depth("{mail}"),
            Epochs(worker.broker.connections).current(["{mail}"]),
            worker.broker.depths(["{mail}"]),
        ):
            with pytest.raises(redis.RedisError):
                await verb
        node.restart()
        job = await eventually_enqueued(worker.broker)
        assert await job.result(timeout=20) == 10


def test_a_start_does_not_wait_for_a_server_that_is_no_cluster(own_redis: StartRedis) -> None:
    """A server without cluster mode ends the start at once."""
    with pytest.raises(StartupError, match="the server refuses: Cluster mode is not enabled"):
        await_redis(f"redis+cluster://127.0.0.1:{own_redis().port}", 10)


async def eventually_enqueued(broker: Broker) -> Job[int]:
    """Enqueue a job as soon as Redis takes one."""
    while True:
        with contextlib.suppress(redis.RedisError, OSError):
            return await double.enqueue(5)
        await asyncio.sleep(0.1)


async def test_a_cluster_without_a_reachable_node_is_a_connection_error() -> None:
    """If no node answers, clients raise redis-py's `ConnectionError`, and a start ends after its wait."""
    url = "redis+cluster://127.0.0.1:1"
    client = connect(url)
    with pytest.raises(redis.ConnectionError):
        await client.ping()
    await close(client)
    with pytest.raises(redis.ConnectionError):
        connect_sync(url)
    with pytest.raises(StartupError, match=r"REDIS_URL: no answer within 0\.3 s"):
        await_redis(url, 0.3)


async def test_a_cluster_client_replaces_a_connection_that_was_lost_unnoticed(cluster: str) -> None:
    """A cluster's client opens a new connection in place of one that was lost unnoticed."""
    client = connect(cluster)
    assert isinstance(client, redis.asyncio.RedisCluster)
    async with contextlib.aclosing(client):
        await client.set("key", "value")
        for node in client.get_nodes():
            for connection in node._connections:
                await lose(connection)
        assert await client.get("key") == b"value"


async def test_one_worker_serves_hash_tagged_queues_on_all_nodes_of_a_cluster(cluster: str) -> None:
    """One worker serves hash-tagged queues on different nodes; a queue without a tag is refused, with the remedy."""
    names = ["{mail}", "{news}", "{print}"]
    assert {key_slot(name[1:-1].encode()) % 3 for name in names} == {0, 1, 2}
    async with working(cluster, queue=names[0], queues=",".join(names)) as worker:
        for name in names:
            jobs = await double.using(queue=name).enqueue_many({"number": number} for number in range(20))
            assert [await job.result(timeout=30) for job in jobs] == [2 * number for number in range(20)]
            job = await double.using(queue=name, delay=60).enqueue(1)
            assert await job.abort(timeout=5)
        with connect_sync(cluster) as client:
            await eventually(lambda: all(client.exists(f"{name}:health-check:w") for name in names))
        reader = MetricsReader(worker.broker)
        await eventually(partial(reader.healthy_workers, names[1:2]))
        assert await worker.broker.depths(names) == dict.fromkeys(names, 0)
        assert set(await reader.healthy_workers(names[1:2])) == {"w"}
        with pytest.raises(WorkerError, match=re.escape("call it {arq:queue} instead of arq:queue")):
            await worker.broker.enqueue([new_job("a", b"{}", "arq:queue")])
    with connect_sync(cluster) as client:
        left = {
            key
            for key in client.keys("*", target_nodes="all")
            if not any(part in key for part in (b":result:", b":metrics:", b":served-queues"))
        }
    assert left == {f"{name}:tasks".encode() for name in names}  # for half a minute


def documented_rules() -> list[str]:
    """Return the ACL rules of the user in the documentation."""
    found = re.search(
        r"ACL SETUSER worker ((?:.*\\\n)*.*)",
        (REPOSITORY / "docs/how-to/redis-with-sentinel-cluster-tls-or-acl.md").read_text(),
    )
    assert found is not None
    return found[1].replace("\\\n", " ").replace(">password", ">secret").split()


def test_the_documented_acl_allows_every_command_of_every_script() -> None:
    """The documented rules name every command of every script: a refused call in a script can go unnoticed."""
    scripts = (REPOSITORY / "worker/broker/scripts").glob("*.lua")
    called = {command for script in scripts for command in re.findall(r"redis\.p?call\('(\w+)'", script.read_text())}
    assert len(called) > 20
    assert called - {rule.removeprefix("+").upper() for rule in documented_rules()} == set()


async def test_the_documented_acl_and_two_more_commands_suffice_in_a_cluster(
    nodes: list[EmbeddedRedis], cluster: str
) -> None:
    """In a cluster a user needs two more commands, and the queue's keys and channels."""
    for node in nodes:
        with redis.Redis.from_url(node.url) as admin:
            more = ("~{mail}*", "&{mail}:*", "+cluster|slots", "+command")
            admin.execute_command("ACL", "SETUSER", "worker", "reset", *documented_rules(), *more)
    async with working(cluster.replace("://", "://worker:secret@"), queue="{mail}"):
        assert await (await double.enqueue(4)).result(timeout=30) == 8


@pytest.mark.parametrize("rules", [(), ("+select",)], ids=["database 0", "database 1"])
@pytest.mark.parametrize("program", PROGRAMS)
async def test_the_documented_acl_suffices_for_workers_and_clients(program: str, rules: tuple[str, ...]) -> None:
    """A user with only the documented permissions can do all that a worker and its clients do."""
    with running(program) as server:
        database = server.url.replace("/0", f"/{len(rules)}")
        with redis.Redis.from_url(database) as admin:
            admin.execute_command("ACL", "SETUSER", "worker", "reset", *documented_rules(), *rules)
        url = database.replace("redis://", "redis://worker:secret@")
        began = asyncio.Event()

        @task
        async def hold() -> None:
            began.set()
            await asyncio.Event().wait()

        async with working(url, hold, double) as worker:
            assert await (await double.enqueue(4)).result(timeout=30) == 8
            held = await hold.enqueue()
            await began.wait()
            with redis.Redis.from_url(database) as admin:
                admin.delete(f"arq:in-progress:{held.job_id}")
                await eventually(lambda: admin.exists(f"arq:in-progress:{held.job_id}"))
                assert await held.abort(timeout=5)
                await eventually(lambda: admin.exists("arq:queue:health-check:w"))
            assert await worker.broker.depth("arq:queue") == 0
            assert await eventually(lambda: MetricsReader(worker.broker).healthy_workers(["arq:queue"]))
            assert await held.status() == "complete"
            with pytest.raises(redis.exceptions.NoPermissionError):
                await worker.broker.redis.flushdb()
            with pytest.raises(redis.exceptions.NoPermissionError):
                await worker.broker.redis.get("somebody's")

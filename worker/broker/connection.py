"""Connections to Redis, as :mod:`worker.broker.redis_url` has read its URL.

Sentinels are asked for the primary each time that a connection is opened; the nodes of a Redis Cluster are found.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.connection
import redis.asyncio.sentinel
import redis.cluster
import redis.exceptions
import redis.sentinel
from redis.asyncio.connection import AbstractConnection
from redis.connection import HiredisRespSerializer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from worker.aio.deadline import Deadline
from worker.broker.closed_loop import drop_connection
from worker.broker.pool import BoundedPool, BoundedSentinelPool, ServerFullError, Turns, Waiting
from worker.broker.redis_url import RedisAddress

TIMEOUT = 5.0
"""Seconds that a reply may take: a black-holed server must not hold a worker for longer."""

_NO_CLUSTER = "Cluster mode is not enabled on this node"  # in redis-py's words

AsyncClient = redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster
SyncClient = redis.Redis | redis.cluster.RedisCluster

R = TypeVar("R", bound=redis.asyncio.Redis)


def connect(url: str) -> AsyncClient:
    """A client with connections of its own; none is opened yet.

    Raises:
        ValueError: the URL cannot be used.
    """
    address = RedisAddress.parse(url)
    if address.kind != "cluster":
        return _connect_as(redis.asyncio.Redis, address)
    nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in address.hosts]
    cluster = _AsyncCluster(  # type: ignore[abstract]  # it is not
        Turns(address.max_connections, address.wait), startup_nodes=nodes, **address.login, **_options(address)
    )
    return _improved_cluster(cluster)


def connect_as(kind: type[R], url: str) -> R:
    """`connect`, to one server or through Sentinels, as a client of another class."""
    return _connect_as(kind, RedisAddress.parse(url))


def connect_to_subscribe(url: str, turn: int) -> redis.asyncio.Redis:
    """A client whose connection hears what is published; of a cluster to any node, another one at each `turn`."""
    address = RedisAddress.parse(url)
    if address.kind != "cluster":
        return _connect_as(redis.asyncio.Redis, address)
    host, port = address.hosts[turn % len(address.hosts)]
    return _improved(redis.asyncio.Redis(host=host, port=port, **address.login, **_options(address)))


def connect_sync(url: str, *, longest_wait: float | None = None) -> SyncClient:
    """`connect`, for a thread; `longest_wait`, in seconds, where the URL allows longer.

    Raises:
        ValueError: the URL cannot be used.
        redis.RedisError: no node of a cluster says what others there are.
    """
    address = RedisAddress.parse(url)
    options = _options(address, longest_wait)
    match address.kind:
        case "cluster":
            nodes = [redis.cluster.ClusterNode(host, port) for host, port in address.hosts]
            with _as_redis_error():
                cluster: redis.cluster.RedisCluster = _SyncCluster(startup_nodes=nodes, **address.login, **options)
            return cluster
        case "sentinel":
            sentinel = redis.sentinel.Sentinel(
                list(address.hosts), sentinel_kwargs={**address.sentinel_login, **options}
            )
            primary: redis.Redis = sentinel.master_for(address.service, db=address.database, **address.login, **options)
            return primary
        case kind:
            where = _SYNC_CONNECTIONS[kind]
            pool = redis.ConnectionPool(
                connection_class=where, db=address.database, **_place(address), **address.login, **options
            )
            return redis.Redis.from_pool(pool)


def _connect_as(kind: type[R], address: RedisAddress) -> R:
    options = {**address.login, "db": address.database, **_options(address)}
    options |= {"max_connections": address.max_connections, "wait": address.wait}
    pool: redis.asyncio.ConnectionPool
    if address.kind == "sentinel":
        sentinel = redis.asyncio.sentinel.Sentinel(
            list(address.hosts), sentinel_kwargs={**address.sentinel_login, **_options(address)}
        )
        pool = BoundedSentinelPool(service_name=address.service, sentinel_manager=sentinel, **options)
    else:
        pool = BoundedPool(connection_class=_ASYNC_CONNECTIONS[address.kind], **_place(address), **options)
    client: R = kind.from_pool(pool)  # type: ignore[assignment]  # redis-py forgets which class it was asked for
    return _improved(client)


_ASYNC_CONNECTIONS: dict[str, type[AbstractConnection]] = {
    "tcp": redis.asyncio.Connection,
    "tls": redis.asyncio.SSLConnection,
    "unix": redis.asyncio.UnixDomainSocketConnection,
}
_SYNC_CONNECTIONS: dict[str, Any] = {
    "tcp": redis.Connection,
    "tls": redis.SSLConnection,
    "unix": redis.UnixDomainSocketConnection,
}


def _place(address: RedisAddress) -> dict[str, Any]:
    """Of one server."""
    if address.kind == "unix":
        return {"path": address.path}
    ((host, port),) = address.hosts
    return {"host": host, "port": port}


def _options(address: RedisAddress, longest_wait: float | None = None) -> dict[str, Any]:
    """Of each connection: the URL's own, and limits where it sets none."""
    limits: dict[str, Any] = {"socket_timeout": TIMEOUT}
    if address.kind != "unix":
        limits |= {"socket_connect_timeout": TIMEOUT, "socket_keepalive": True}
    options = limits | dict(address.options)
    if longest_wait is not None:
        for name in ("socket_timeout", "socket_connect_timeout"):
            if name in options:
                options[name] = min(options[name], longest_wait)
    return options


async def close(client: AsyncClient) -> None:
    """Close all connections, those to the Sentinels too, which redis-py leaves open."""
    await client.aclose()
    for sentinel in _sentinels(client):
        await sentinel.aclose()


def close_sync(client: SyncClient) -> None:
    """`close`, for a thread."""
    client.close()
    for sentinel in _sentinels(client):
        sentinel.close()


def abandon(client: AsyncClient) -> None:
    """`close`, where the client's event loop is closed."""
    for connection in _connections(client):
        drop_connection(connection)
    for sentinel in _sentinels(client):
        abandon(sentinel)


async def drop_connections(client: AsyncClient) -> None:
    """Send no more by these: a server that answers READONLY is not the primary any more. A cluster's client knows."""
    pool = getattr(client, "connection_pool", None)
    if isinstance(pool, Waiting):
        await pool.renew()


def drop_connections_sync(client: SyncClient) -> None:
    """`drop_connections`, for a thread."""
    if isinstance(client, redis.Redis):
        client.connection_pool.disconnect(inuse_connections=False)


def _connections(client: AsyncClient) -> list[AbstractConnection]:
    if isinstance(client, redis.asyncio.Redis):
        pool: Any = client.connection_pool
        return [*pool._available_connections, *pool._in_use_connections]  # noqa: SLF001 - redis-py tells of them nowhere
    nodes: Any = client.nodes_manager.nodes_cache.values()
    return [connection for node in nodes for connection in node._connections]  # noqa: SLF001 - likewise


def _sentinels(client: AsyncClient | SyncClient) -> list[Any]:
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    return [] if manager is None else list(manager.sentinels)


def _improved(client: R) -> R:
    pool: Any = client.connection_pool
    pool.connection_class = _mixed(pool.connection_class)
    return client


@contextmanager
def _as_redis_error() -> Iterator[None]:
    """That no node of a cluster can be had is a `RedisError`, as of any other Redis; redis-py's own is none."""
    try:
        yield
    except redis.exceptions.RedisClusterException as error:
        if isinstance(error.__cause__, redis.RedisError):
            raise error.__cause__ from None
        if _NO_CLUSTER in str(error):
            raise redis.ResponseError(_NO_CLUSTER) from error
        raise RedisConnectionError(str(error)) from error
    except IndexError as error:  # it chooses one of no nodes
        raise RedisConnectionError("no node of the cluster has slots yet") from error


class _AsyncCluster(redis.asyncio.cluster.RedisCluster):
    def __init__(self, turns: Turns, **options: Any) -> None:
        super().__init__(**options)
        self._turns = turns
        self._given = dict(self.nodes_manager.startup_nodes)

    async def initialize(self) -> Any:
        # redis-py forgets nodes that do not answer, be it all of them.
        for name, node in self._given.items():
            self.nodes_manager.startup_nodes.setdefault(name, node)
        with _as_redis_error():
            return await super().initialize()

    async def execute_command(self, *words: Any, **options: Any) -> Any:
        async with self._turns:
            with _as_redis_error():
                return await super().execute_command(*words, **options)


class _SyncCluster(redis.cluster.RedisCluster):
    def execute_command(self, *words: Any, **options: Any) -> Any:
        with _as_redis_error():
            return super().execute_command(*words, **options)  # type: ignore[no-untyped-call]  # redis-py's


def _improved_cluster(cluster: redis.asyncio.cluster.RedisCluster) -> redis.asyncio.cluster.RedisCluster:
    connection_class = _mixed(cluster.connection_kwargs["connection_class"])
    cluster.connection_kwargs["connection_class"] = connection_class  # of the nodes that it will find
    for node in cluster.nodes_manager.startup_nodes.values():
        node.connection_class = connection_class
    return cluster


class _Improved:
    """What redis-py's connection of asyncio lacks.

    1. It packs commands by hiredis, as redis-py 5 does elsewhere.
    2. One that was lost unnoticed says so when it is written to. The transport of uvloop raises a `RuntimeError` there,
       asyncio's since CPython 3.12 an `AttributeError` or a `TypeError`:
       https://github.com/python/cpython/issues/136234
    3. It works in a task that was cancelled before, and cleans up. Its look for late answers ends by `asyncio.timeout`,
       whose cancellation CPython before 3.11.3 takes for somebody else's there:
       https://github.com/python/cpython/issues/102780
    4. A cancellation is heard, also one that arrives while a command is sent, which `asyncio.wait_for` may lose, in
       CPython before 3.12: https://github.com/python/cpython/issues/86296
    5. A server that takes no more clients is told apart. It says so and closes the connection, but often redis-py has
       written to that by then, and only hears that it is lost.
    6. What a server refuses in the beginning, a password or a database, is that error also over a Unix socket, and ends
       the connection: redis-py would wrap it there, and go on with it in database 0.
    """

    _serializer = HiredisRespSerializer()

    async def connect(self: Any) -> None:
        try:
            await super().connect()  # type: ignore[misc]  # mixed into a connection
        except RedisConnectionError as error:
            await self.disconnect(nowait=True)
            if isinstance(error.__cause__, redis.RedisError):
                raise error.__cause__ from None
            raise

    async def on_connect(self) -> None:
        try:
            await super().on_connect()  # type: ignore[misc]  # mixed into a connection
        except RedisConnectionError as error:
            if type(error) is not RedisConnectionError:  # a wrong password, say
                raise
            raise ServerFullError(f"Redis takes no more clients (maxclients), or is going away: {error}") from None

    def pack_command(self, *arguments: Any) -> list[bytes]:
        packed: list[bytes] = self._serializer.pack(*arguments)
        return packed

    async def send_packed_command(self: Any, command: bytes | Iterable[bytes], check_health: bool = True) -> None:
        if not self.is_connected:
            await self.connect()
        elif check_health:
            await self.check_health()
        try:
            self._writer.writelines([command] if isinstance(command, bytes) else command)
            if self.socket_timeout is None:  # whoever sends has a limit of its own
                await self._writer.drain()
            else:
                with Deadline(self.socket_timeout):
                    await self._writer.drain()
        except BaseException as error:
            await self.disconnect(nowait=True)  # nobody will read the answer
            if isinstance(error, TimeoutError):
                raise RedisTimeoutError("Timeout writing to socket") from error
            if isinstance(error, OSError | AttributeError | RuntimeError | TypeError):
                raise RedisConnectionError(f"the connection was lost: {error}") from error
            raise

    async def can_read_destructive(self) -> bool:
        if _cancelling():
            # What `shielded` has put off comes with the next turn, and would pass for the look's own end.
            await asyncio.sleep(0)
        cancelled_before = _cancelling()
        try:
            return bool(await super().can_read_destructive())  # type: ignore[misc]  # mixed into a connection
        except asyncio.CancelledError:
            if _cancelling() > cancelled_before:
                raise
            return False


def _cancelling() -> int:
    """How often this task was cancelled."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


@cache
def _mixed(connection_class: type[Any]) -> type[Any]:
    return type(connection_class.__name__, (_Improved, connection_class), {})

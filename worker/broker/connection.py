"""Clients for the Redis that a URL names: one server, a primary behind Sentinels, or a cluster.

:mod:`worker.broker.redis_url` reads the URL. Sentinels are asked for the primary each time a connection is opened. The
nodes of a Redis Cluster are discovered.
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
from worker.broker.pool import BoundedPool, BoundedPoolMixin, BoundedSentinelPool, CallLimit, ServerFullError
from worker.broker.redis_url import RedisAddress

TIMEOUT = 5.0
"""Seconds that a reply may take, so that a server that silently drops packets does not block a worker for longer."""

_NO_CLUSTER = "Cluster mode is not enabled on this node"  # redis-py's message

AsyncClient = redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster
SyncClient = redis.Redis | redis.cluster.RedisCluster

R = TypeVar("R", bound=redis.asyncio.Redis)


def connect(url: str) -> AsyncClient:
    """A client with connections of its own. The first command opens one.

    Raises:
        ValueError: the URL cannot be used.
    """
    address = RedisAddress.parse(url)
    if address.kind != "cluster":
        return _connect_as(redis.asyncio.Redis, address)
    nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in address.hosts]
    cluster = _AsyncCluster(  # type: ignore[abstract]  # it is concrete
        CallLimit(address.max_connections, address.wait), startup_nodes=nodes, **address.login, **_options(address)
    )
    return _improved_cluster(cluster)


def connect_as(kind: type[R], url: str) -> R:
    """Do as `connect`, with a client of class `kind`. Not for a cluster."""
    return _connect_as(kind, RedisAddress.parse(url))


def connect_to_subscribe(url: str, turn: int) -> redis.asyncio.Redis:
    """A client to subscribe with. In a cluster it connects to one node, and to another one for each `turn`."""
    address = RedisAddress.parse(url)
    if address.kind != "cluster":
        return _connect_as(redis.asyncio.Redis, address)
    host, port = address.hosts[turn % len(address.hosts)]
    return _improved(redis.asyncio.Redis(host=host, port=port, **address.login, **_options(address)))


def connect_sync(url: str, *, longest_wait: float | None = None) -> SyncClient:
    """A synchronous client, for threads.

    Args:
        longest_wait: seconds that a reply or a connection may take, if the URL allows longer.

    Raises:
        ValueError: the URL cannot be used.
        redis.RedisError: no node of a cluster lists the other nodes.
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
                connection_class=where, db=address.database, **_server_arguments(address), **address.login, **options
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
        pool = BoundedPool(connection_class=_ASYNC_CONNECTIONS[address.kind], **_server_arguments(address), **options)
    client: R = kind.from_pool(pool)  # type: ignore[assignment]  # redis-py loses the type
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


def _server_arguments(address: RedisAddress) -> dict[str, Any]:
    """redis-py's arguments for the address of one server."""
    if address.kind == "unix":
        return {"path": address.path}
    ((host, port),) = address.hosts
    return {"host": host, "port": port}


def _options(address: RedisAddress, longest_wait: float | None = None) -> dict[str, Any]:
    """The options of each connection: those of the URL, and default time limits."""
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
    """Close all connections. redis-py leaves those to the Sentinels open, so they are closed here."""
    await client.aclose()
    for sentinel in _sentinels(client):
        await sentinel.aclose()


def close_sync(client: SyncClient) -> None:
    """Close all connections of a synchronous client, those to the Sentinels included."""
    client.close()
    for sentinel in _sentinels(client):
        sentinel.close()


def abandon(client: AsyncClient) -> None:
    """Drop all connections of a client whose event loop is closed."""
    for connection in _connections(client):
        drop_connection(connection)
    for sentinel in _sentinels(client):
        abandon(sentinel)


async def drop_connections(client: AsyncClient) -> None:
    """Replace the connections to a server that answered READONLY, as it is not the primary any more.

    A cluster's client does so by itself.
    """
    pool = getattr(client, "connection_pool", None)
    if isinstance(pool, BoundedPoolMixin):
        await pool.replace_connections()


def drop_connections_sync(client: SyncClient) -> None:
    """Do as `drop_connections`, for a synchronous client."""
    if isinstance(client, redis.Redis):
        client.connection_pool.disconnect(inuse_connections=False)


def _connections(client: AsyncClient) -> list[AbstractConnection]:
    if isinstance(client, redis.asyncio.Redis):
        pool: Any = client.connection_pool
        return [*pool._available_connections, *pool._in_use_connections]  # noqa: SLF001 - redis-py has no public list
    nodes: Any = client.nodes_manager.nodes_cache.values()
    return [connection for node in nodes for connection in node._connections]  # noqa: SLF001 - no public list


def _sentinels(client: AsyncClient | SyncClient) -> list[Any]:
    manager = getattr(getattr(client, "connection_pool", None), "sentinel_manager", None)
    return [] if manager is None else list(manager.sentinels)


def _improved(client: R) -> R:
    pool: Any = client.connection_pool
    pool.connection_class = _mixed(pool.connection_class)
    return client


@contextmanager
def _as_redis_error() -> Iterator[None]:
    """Raise a `RedisError` where no node of a cluster can be reached. redis-py's own error is no `RedisError`."""
    try:
        yield
    except redis.exceptions.RedisClusterException as error:
        if isinstance(error.__cause__, redis.RedisError):
            raise error.__cause__ from None
        if _NO_CLUSTER in str(error):
            raise redis.ResponseError(_NO_CLUSTER) from error
        raise RedisConnectionError(str(error)) from error
    except IndexError as error:  # redis-py chooses from an empty list of nodes
        raise RedisConnectionError("no node of the cluster has slots yet") from error


class _AsyncCluster(redis.asyncio.cluster.RedisCluster):
    def __init__(self, limit: CallLimit, **options: Any) -> None:
        super().__init__(**options)
        self._limit = limit
        self._startup_nodes = dict(self.nodes_manager.startup_nodes)

    async def initialize(self) -> Any:
        # redis-py removes startup nodes that do not answer, even if none is left.
        for name, node in self._startup_nodes.items():
            self.nodes_manager.startup_nodes.setdefault(name, node)
        with _as_redis_error():
            return await super().initialize()

    async def execute_command(self, *words: Any, **options: Any) -> Any:
        async with self._limit:
            with _as_redis_error():
                return await super().execute_command(*words, **options)


class _SyncCluster(redis.cluster.RedisCluster):
    def execute_command(self, *words: Any, **options: Any) -> Any:
        with _as_redis_error():
            return super().execute_command(*words, **options)  # type: ignore[no-untyped-call]  # redis-py's


def _improved_cluster(cluster: redis.asyncio.cluster.RedisCluster) -> redis.asyncio.cluster.RedisCluster:
    connection_class = _mixed(cluster.connection_kwargs["connection_class"])
    cluster.connection_kwargs["connection_class"] = connection_class  # of nodes that are discovered later
    for node in cluster.nodes_manager.startup_nodes.values():
        node.connection_class = connection_class
    return cluster


class _Improved:
    """A mixin with fixes for redis-py's asyncio connections.

    1. It packs commands with hiredis, as redis-py 5 does elsewhere.
    2. A write to a connection that was lost unnoticed raises `ConnectionError`. uvloop's transport raises a
       `RuntimeError` there, and asyncio's since CPython 3.12 an `AttributeError` or a `TypeError`:
       https://github.com/python/cpython/issues/136234
    3. The check for late replies works in a task that was cancelled before. It ends by `asyncio.timeout`, whose own
       cancellation CPython before 3.11.3 mistakes for a cancellation from outside:
       https://github.com/python/cpython/issues/102780
    4. A cancellation that arrives while a command is sent is not lost. `asyncio.wait_for` may lose it in CPython before
       3.12: https://github.com/python/cpython/issues/86296
    5. A server that takes no more clients raises `ServerFullError`. It sends its reason and closes the connection, but
       redis-py has often written to the connection by then, and only reports that it is lost.
    6. An error at login (password or database) is raised as itself also over a Unix socket, and closes the connection.
       redis-py would wrap the error there, and continue in database 0.
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
            if type(error) is not RedisConnectionError:  # for example a wrong password
                raise
            raise ServerFullError(f"Redis takes no more clients (maxclients), or is shutting down: {error}") from None

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
            if self.socket_timeout is None:  # the caller has a deadline of its own
                await self._writer.drain()
            else:
                with Deadline(self.socket_timeout):
                    await self._writer.drain()
        except BaseException as error:
            await self.disconnect(nowait=True)  # nothing will read the reply
            if isinstance(error, TimeoutError):
                raise RedisTimeoutError("Timeout writing to socket") from error
            if isinstance(error, OSError | AttributeError | RuntimeError | TypeError):
                raise RedisConnectionError(f"the connection was lost: {error}") from error
            raise

    async def can_read_destructive(self) -> bool:
        if _cancelling():
            # `shielded` delivers a deferred cancellation at the next turn. It would pass for the end of this check.
            await asyncio.sleep(0)
        cancelled_before = _cancelling()
        try:
            return bool(await super().can_read_destructive())  # type: ignore[misc]  # mixed into a connection
        except asyncio.CancelledError:
            if _cancelling() > cancelled_before:
                raise
            return False


def _cancelling() -> int:
    """The number of pending cancellations of this task."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


@cache
def _mixed(connection_class: type[Any]) -> type[Any]:
    return type(connection_class.__name__, (_Improved, connection_class), {})

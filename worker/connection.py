"""Connections to Redis, from one URL.

``redis://``, ``rediss://`` (TLS) and ``unix://`` as redis-py reads them, with its options after the ``?``;
``redis+sentinel://user:password@host-1:26379,host-2:26379/service/0`` asks Sentinels for the primary of `service`, each
time that it connects; ``redis+cluster://user:password@host-1:6379,host-2:6379`` finds the nodes of a Redis Cluster.
"""

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.exceptions
import redis.sentinel
from redis.connection import HiredisRespSerializer
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from worker.deadline import Deadline

SENTINEL = "redis+sentinel://"
CLUSTER = "redis+cluster://"

TIMEOUT = 5.0
"""Seconds that a reply may take: a black-holed server must not hold a worker for longer."""

_NO_CLUSTER = "Cluster mode is not enabled on this node"  # in redis-py's words
_SENTINEL_PORT, _REDIS_PORT = 26379, 6379

AsyncClient = redis.asyncio.Redis | redis.asyncio.cluster.RedisCluster
SyncClient = redis.Redis | redis.cluster.RedisCluster

R = TypeVar("R", bound=redis.asyncio.Redis)


@dataclass(frozen=True, slots=True)
class Address:
    """Several hosts, and whom to be there."""

    hosts: tuple[tuple[str, int], ...]
    username: str | None
    password: str | None

    @classmethod
    def parse(cls, netloc: str, port: int) -> "Address":
        user_info, _, hosts = netloc.rpartition("@")
        username, _, password = user_info.partition(":")
        return cls(
            hosts=tuple(_host(host, port) for host in hosts.split(",") if host),
            username=unquote(username) or None,
            password=unquote(password) or None,
        )

    @property
    def login(self) -> dict[str, Any]:
        return {"username": self.username, "password": self.password}


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """Where to ask for the primary, and as whom to talk to that."""

    sentinels: Address
    service: str
    database: int

    @classmethod
    def parse(cls, url: str) -> "SentinelAddress":
        """
        Raises:
            ValueError: no host or no service, or there is what it does not understand.
        """
        with _told_as(f"{SENTINEL}user:password@host-1:26379,host-2:26379/service/0"):
            parts = urlsplit(url)
            service, _, database = parts.path.strip("/").partition("/")
            sentinels = Address.parse(parts.netloc, _SENTINEL_PORT)
            _require(sentinels.hosts and service and not parts.query and not parts.fragment)
            _require(database.isdecimal() or not database)
            return cls(sentinels, service, int(database or 0))


def cluster_address(url: str) -> Address:
    """Where to ask for the nodes.

    Raises:
        ValueError: no host, or a database, of which a cluster has only one, or there is what it does not understand.
    """
    with _told_as(f"{CLUSTER}user:password@host-1:6379,host-2:6379"):
        parts = urlsplit(url)
        address = Address.parse(parts.netloc, _REDIS_PORT)
        _require(address.hosts and not parts.path.strip("/") and not parts.query and not parts.fragment)
        return address


@contextmanager
def _told_as(shape: str) -> Iterator[None]:
    """Any `ValueError` says what to write, and quotes nothing of what may be a piece of the password."""
    try:
        yield
    except ValueError:
        raise ValueError(
            f"write {shape} without options after it, and / @ : ? and # in the password as %2F %40 %3A %3F and %23"
        ) from None


def _require(fulfilled: object) -> None:
    if not fulfilled:
        raise ValueError


def connect(url: str) -> AsyncClient:
    """A client with connections of its own; none is opened yet."""
    if url.startswith(CLUSTER):
        address = cluster_address(url)
        nodes = [redis.asyncio.cluster.ClusterNode(host, port) for host, port in address.hosts]
        cluster = _AsyncCluster(startup_nodes=nodes, **address.login, **_limits(url))  # type: ignore[abstract]  # it is not
        return _improved_cluster(cluster)
    return connect_as(redis.asyncio.Redis, url)


def connect_as(kind: type[R], url: str) -> R:
    """`connect`, to one server or through Sentinels, as a client of another class."""
    limits = _limits(url)
    client: R
    if url.startswith(SENTINEL):
        address = SentinelAddress.parse(url)
        sentinel = redis.asyncio.sentinel.Sentinel(list(address.sentinels.hosts), **limits)
        client = sentinel.master_for(
            address.service, redis_class=kind, db=address.database, **address.sentinels.login, **limits
        )
    else:
        client = kind.from_url(url, **limits)
    return _improved(client)


def connect_to_subscribe(url: str, turn: int) -> redis.asyncio.Redis:
    """A client whose connection hears what is published; of a cluster to any node, another one at each `turn`."""
    if not url.startswith(CLUSTER):
        return connect_as(redis.asyncio.Redis, url)
    address = cluster_address(url)
    host, port = address.hosts[turn % len(address.hosts)]
    return _improved(redis.asyncio.Redis(host=host, port=port, **address.login, **_limits(url)))


def connect_sync(url: str, *, longest_wait: float | None = None) -> SyncClient:
    """`connect`, for a thread; `longest_wait`, in seconds, instead of `TIMEOUT`.

    Raises:
        redis.RedisError: no node of a cluster says what others there are.
    """
    limits = _limits(url, longest_wait)
    if url.startswith(CLUSTER):
        address = cluster_address(url)
        nodes = [redis.cluster.ClusterNode(host, port) for host, port in address.hosts]
        with _as_redis_error():
            cluster: redis.cluster.RedisCluster = _SyncCluster(startup_nodes=nodes, **address.login, **limits)
        return cluster
    if url.startswith(SENTINEL):
        sentinels = SentinelAddress.parse(url)
        sentinel = redis.sentinel.Sentinel(list(sentinels.sentinels.hosts), **limits)
        primary: redis.Redis = sentinel.master_for(
            sentinels.service, db=sentinels.database, **sentinels.sentinels.login, **limits
        )
        return primary
    return redis.Redis.from_url(url, **limits)


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


async def drop_connections(client: AsyncClient) -> None:
    """Close the idle ones: a server that answers READONLY is not the primary any more. A cluster's client knows."""
    if isinstance(client, redis.asyncio.Redis):
        await client.connection_pool.disconnect(inuse_connections=False)


def drop_connections_sync(client: SyncClient) -> None:
    """`drop_connections`, for a thread."""
    if isinstance(client, redis.Redis):
        client.connection_pool.disconnect(inuse_connections=False)


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
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._given = dict(self.nodes_manager.startup_nodes)

    async def initialize(self) -> Any:
        # redis-py forgets nodes that do not answer, be it all of them.
        for name, node in self._given.items():
            self.nodes_manager.startup_nodes.setdefault(name, node)
        with _as_redis_error():
            return await super().initialize()

    async def execute_command(self, *words: Any, **options: Any) -> Any:
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
    5. What a server refuses in the beginning, a password or a database, is that error also over a Unix socket, and ends
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
            # What `to_the_end` has put off comes with the next turn, and would pass for the look's own end.
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


def _limits(url: str, timeout: float | None = None) -> dict[str, Any]:
    timeout = timeout or TIMEOUT
    if url.startswith("unix:"):
        return {"socket_timeout": timeout}
    return {"socket_timeout": timeout, "socket_connect_timeout": timeout, "socket_keepalive": True}


def _host(text: str, port: int) -> tuple[str, int]:
    name, _, given = text.partition(":")
    _require(name and (not given or (given.isdecimal() and 0 < int(given) < 65536)))
    return name, int(given or port)

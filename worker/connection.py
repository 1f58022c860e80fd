"""Connections to Redis, from one URL.

``redis://``, ``rediss://`` (TLS) and ``unix://`` as redis-py reads them, with its options after the ``?``;
``redis+sentinel://:password@host-1:26379,host-2:26379/service/0`` asks Sentinels for the primary of `service`, each
time that it connects.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import unquote, urlsplit

import hiredis
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel

SENTINEL = "redis+sentinel://"

_TIMEOUT = 5.0  # seconds that a reply may take: a black-holed server must not hold a worker for longer
_SENTINEL_PORT = 26379


@dataclass(frozen=True, slots=True)
class SentinelAddress:
    """Where to ask for the primary, and as whom."""

    hosts: tuple[tuple[str, int], ...]
    service: str
    database: int
    username: str | None
    password: str | None

    @classmethod
    def parse(cls, url: str) -> "SentinelAddress":
        """
        Raises:
            ValueError: no host or no service.
        """
        parts = urlsplit(url)
        user_info, _, hosts = parts.netloc.rpartition("@")
        username, _, password = user_info.partition(":")
        service, _, database = parts.path.strip("/").partition("/")
        if not hosts or not service:
            raise ValueError(f"write {SENTINEL}host-1:26379,host-2:26379/service")
        return cls(
            hosts=tuple(_host(host) for host in hosts.split(",")),
            service=service,
            database=int(database or 0),
            username=unquote(username) or None,
            password=unquote(password) or None,
        )


def connect(url: str, **options: Any) -> redis.asyncio.Redis:
    """A client with a pool of its own; no connection is opened yet."""
    options = _limits(url) | options
    if url.startswith(SENTINEL):
        address = SentinelAddress.parse(url)
        sentinel = redis.asyncio.sentinel.Sentinel(list(address.hosts), **options)
        primary: redis.asyncio.Redis = sentinel.master_for(address.service, **_login(address), **options)
        return primary
    client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(url, **options)
    pool = client.connection_pool
    pool.connection_class = _packing_in_c(pool.connection_class)
    return client


def connect_sync(url: str, **options: Any) -> redis.Redis:
    """`connect`, for a thread."""
    options = _limits(url) | options
    if url.startswith(SENTINEL):
        address = SentinelAddress.parse(url)
        sentinel = redis.sentinel.Sentinel(list(address.hosts), **options)
        primary: redis.Redis = sentinel.master_for(address.service, **_login(address), **options)
        return primary
    return redis.Redis.from_url(url, **options)


class _PackingInC:
    """Packs commands by hiredis; redis-py 5 does it in Python where the connection is asyncio's."""

    def pack_command(self, *arguments: Any) -> list[bytes]:
        return [hiredis.pack_command(arguments)]


@cache
def _packing_in_c(connection_class: type[Any]) -> type[Any]:
    return type(connection_class.__name__, (_PackingInC, connection_class), {})


def _limits(url: str) -> dict[str, Any]:
    if url.startswith("unix:"):
        return {"socket_timeout": _TIMEOUT}
    return {"socket_timeout": _TIMEOUT, "socket_connect_timeout": _TIMEOUT, "socket_keepalive": True}


def _login(address: SentinelAddress) -> dict[str, Any]:
    return {"db": address.database, "username": address.username, "password": address.password}


def _host(text: str) -> tuple[str, int]:
    name, _, port = text.partition(":")
    return name, int(port or _SENTINEL_PORT)

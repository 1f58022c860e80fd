"""What a stand-in for a server must know of its URL: where the server listens, and the URL of the stand-in."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from urllib.parse import quote

from redis.connection import parse_url
from sqlalchemy import URL, make_url

from tests.listener import Streams
from worker.embedded.port import free_port


@dataclass(frozen=True)
class Front:
    """An address of our own in front of a server: the same URL with the address changed."""

    url: str
    port: int
    connect: Callable[[], Awaitable[Streams]]
    """Opens a connection to the server itself."""


def in_front_of(url: str) -> Front:
    """A free port of 127.0.0.1 for a stand-in of the PostgreSQL or Redis that `url` names."""
    return _in_front_of_postgres(make_url(url)) if url.startswith("postgresql") else _in_front_of_redis(url)


def _in_front_of_postgres(url: URL) -> Front:
    front = free_port()
    host = str(url.query.get("host", url.host))
    port = int(str(url.query.get("port", url.port or 5432)))
    connect = (
        partial(asyncio.open_unix_connection, f"{host}/.s.PGSQL.{port}")
        if host.startswith("/")
        else partial(asyncio.open_connection, host, port)
    )
    ours = url.set(host="127.0.0.1", port=front).difference_update_query(["host", "port"])
    return Front(ours.render_as_string(hide_password=False), front, connect)


def _in_front_of_redis(url: str) -> Front:
    front = free_port()
    server = parse_url(url)
    connect = (
        partial(asyncio.open_unix_connection, server["path"])
        if "path" in server
        else partial(asyncio.open_connection, server.get("host", "localhost"), server.get("port", 6379))
    )
    user, password = (quote(server.get(key) or "", safe="") for key in ("username", "password"))
    account = f"{user}:{password}@" if password else ""
    return Front(f"redis://{account}127.0.0.1:{front}/{server.get('db', 0)}", front, connect)

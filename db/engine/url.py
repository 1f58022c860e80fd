"""Database URLs: parse them, name their driver, and derive others from them."""

import re
from collections.abc import Mapping
from inspect import signature
from typing import Any

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from db.engine import libpq, sqlite
from db.errors import DatabaseURLError

# Schemes without a driver, and the driver that they mean.
_DRIVERS = {
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "sqlite": "sqlite+aiosqlite",
}
_SYNC_DRIVERS = {"postgresql": "postgresql+psycopg", "sqlite": "sqlite+pysqlite"}
# The part before the hosts, several hosts, and the rest.
_SEVERAL_HOSTS = re.compile(r"([^:/]+://(?:[^/?#]*@)?)([^/?#@]*,[^/?#@]*)(.*)", re.DOTALL)
_HOST_AND_PORT = re.compile(r"(?:\[([^\[\]]+)\]|([^\[\]:]+))(?::(\d+))?")
_PARTS = tuple(signature(URL.create).parameters)
_EXAMPLE = "postgresql+asyncpg://user:password@host/name"


def parse_url(url: str | URL | Mapping[str, Any]) -> URL:
    """Parse `url`, name its driver, and give PostgreSQL's parameters libpq's names.

    A mapping has the arguments of SQLAlchemy's `URL.create`: ``drivername``, ``username``, ``password``, ``host``,
    ``port``, ``database`` and ``query``.

    Raises:
        DatabaseURLError: the URL cannot be parsed, its driver is unknown or not installed, its driver does not support
            a parameter, or it names a shared ``:memory:``.
    """
    if isinstance(url, Mapping):
        url = _created(url)
    try:
        parsed = _make_url(url)
        parsed = parsed.set(drivername=_DRIVERS.get(parsed.drivername, parsed.drivername))
        parsed.get_dialect().import_dbapi()
    except ImportError as error:
        raise DatabaseURLError(f"the driver {parsed.drivername} cannot be imported ({error}): install it") from None
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        # Never the URL itself: it may hold a password.
        raise DatabaseURLError(f"not a database URL ({type(error).__name__}): write e.g. {_EXAMPLE}") from None
    if parsed.get_backend_name() == "sqlite":
        sqlite.refuse_memory(parsed)
    return libpq.checked(parsed) if parsed.get_backend_name() == "postgresql" else parsed


def _created(parts: Mapping[str, Any]) -> URL:
    unknown = sorted(str(name) for name in parts if name not in _PARTS)
    if unknown or "drivername" not in parts:
        wrong = f"has no part {unknown[0]!r}" if unknown else "needs a drivername"
        raise DatabaseURLError(f"a database URL {wrong}: its parts are {', '.join(_PARTS)}")
    try:
        return URL.create(**parts)
    except ValueError:
        raise DatabaseURLError("not a database URL: its port is not a number") from None
    except TypeError as error:  # its text names the part, and has no value
        raise DatabaseURLError(f"not a database URL: {error}") from None


def sync_twin(url: URL) -> URL | None:
    """`url` with a synchronous driver, or None where no such driver is known."""
    driver = _SYNC_DRIVERS.get(url.get_backend_name())
    return None if driver is None else libpq.without_asyncpg_parameters(url).set(drivername=driver)


def same_database(one: URL | None, other: URL | None) -> bool:
    """Whether two URLs name the same database, with the same driver or another."""
    return one is not None and other is not None and _place(one) == _place(other)


def host_of(url: URL) -> str | None:
    """The host, or the folder of sockets, which may be a parameter as in libpq."""
    host = url.host or url.query.get("host")
    return host if isinstance(host, str) else None


def with_host(url: URL, host: str) -> URL:
    """`url` on another host, written ``name``, ``name:port``, ``[IPv6]:port`` or as a folder of sockets.

    Raises:
        DatabaseURLError: the port is not a number.
    """
    elsewhere = url.difference_update_query(["host", "port"])
    if host.startswith("/"):
        # The URL's own host would take precedence over the parameter.
        unnamed = URL.create(url.drivername, url.username, url.password, database=url.database, query=elsewhere.query)
        return unnamed.update_query_dict({"host": host, "port": str(url.port or 5432)})
    name, _, port = host.rpartition(":") if host.count(":") == 1 or "]:" in host else (host, "", "")
    if port and not port.isdecimal():
        raise DatabaseURLError(f"not a host: {host!r}: write e.g. db-2 or db-2:5432")
    return elsewhere.set(host=name.strip("[]"), port=int(port) if port else url.port)


def _place(url: URL) -> tuple[object, ...]:
    port = str(url.port or url.query.get("port") or 5432)
    return url.get_backend_name(), host_of(url), port, url.database, url.username


def _make_url(url: str | URL) -> URL:
    """Parse `url` by SQLAlchemy's `make_url`, which takes several hosts only as parameters."""
    several = None if isinstance(url, URL) else _SEVERAL_HOSTS.fullmatch(url)
    if several is None:
        return make_url(url)
    before, hosts, after = several.groups()
    found = [_HOST_AND_PORT.fullmatch(host) for host in hosts.split(",")]
    named = [(each[1] or each[2], each[3] or "5432") for each in found if each is not None]
    if len(named) < len(found):
        raise ValueError("a host without a name, or a port that is no number")
    names, ports = zip(*named, strict=True)
    return make_url(before + after).update_query_dict({"host": ",".join(names), "port": ",".join(ports)})

"""``RedisAddress``: ``REDIS_URL``, parsed and checked before anything connects.

1. ``redis://``, ``rediss://`` (TLS) and ``unix://`` name one server. ``redis+sentinel://`` names the Sentinels of a
   primary. ``redis+cluster://`` names nodes of a Redis Cluster. An IPv6 address stands in brackets.
2. Each option after the ``?`` works, or is refused with its name. redis-py would pass an unknown option to its
   connections, and each of them would fail.
3. No error quotes a value, as the value may be a piece of a password.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

from redis.connection import parse_url

SENTINEL = "redis+sentinel://"
CLUSTER = "redis+cluster://"

MOST_CONNECTIONS = 50
"""The most connections of one pool, unless the URL sets ``max_connections``."""
LONGEST_WAIT = 20.0
"""Seconds that a call waits for a connection, unless the URL sets ``timeout``."""

Kind: TypeAlias = Literal["tcp", "tls", "unix", "sentinel", "cluster"]

_EXAMPLE = "redis://localhost:6379/0"
_SENTINEL_SHAPE = f"{SENTINEL}user:password@host-1:26379,host-2:26379/service/0"
_CLUSTER_SHAPE = f"{CLUSTER}user:password@host-1:6379,host-2:6379"
_SENTINEL_PORT, _REDIS_PORT = 26379, 6379
_HOST = re.compile(r"(?:\[(?P<ipv6>[0-9a-fA-F:.]+)\]|(?P<name>[^:\[\]]+))(?::(?P<port>\d+))?")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """The servers, the login, and the options of the connections."""

    kind: Kind
    hosts: tuple[tuple[str, int], ...] = ()
    """The server, the Sentinels, or nodes of the cluster. Empty for a Unix socket."""
    path: str | None = None
    """The Unix socket."""
    service: str = ""
    """The name under which the Sentinels know the primary."""
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_login: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The login of the Sentinels themselves, if they need one."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The options of each connection, by redis-py's names."""
    max_connections: int = MOST_CONNECTIONS
    wait: float = LONGEST_WAIT
    """Seconds that a call waits for a free connection."""

    @classmethod
    def parse(cls, url: str) -> "RedisAddress":
        """Parse a URL.

        Raises:
            ValueError: the URL is of no supported kind, or has an option that does not work.
        """
        address, _, query = url.partition("?")
        if address.startswith(SENTINEL):
            return _sentinels(address, _options("sentinel", query))
        if address.startswith(CLUSTER):
            return _cluster(address, _options("cluster", query))
        return _server(address, query)

    @property
    def login(self) -> dict[str, Any]:
        """The login of Redis, as redis-py's arguments."""
        return {"username": self.username, "password": self.password}


def _sentinels(address: str, options: dict[str, Any]) -> RedisAddress:
    with _with_example(_SENTINEL_SHAPE):
        parts = urlsplit(_without_brackets(address))
        service, _, database = parts.path.strip("/").partition("/")
        username, password, hosts = _netloc(address, _SENTINEL_PORT)
        _require(hosts and service and not parts.fragment and (database.isdecimal() or not database))
    login = {name: options.pop(f"sentinel_{name}", "") for name in ("username", "password")}
    return _new_address(
        options,
        kind="sentinel",
        hosts=hosts,
        service=service,
        database=int(database or 0),
        username=username,
        password=password,
        sentinel_login={name: value for name, value in login.items() if value},
    )


def _cluster(address: str, options: dict[str, Any]) -> RedisAddress:
    with _with_example(_CLUSTER_SHAPE):
        parts = urlsplit(_without_brackets(address))
        username, password, hosts = _netloc(address, _REDIS_PORT)
        _require(hosts and not parts.path.strip("/") and not parts.fragment)
    return _new_address(options, kind="cluster", hosts=hosts, username=username, password=password)


def _server(address: str, query: str) -> RedisAddress:
    scheme = address.partition("://")[0]
    kind = _SCHEMES.get(scheme if "://" in address else "")
    if kind is None:
        raise ValueError(f"not a Redis URL: it begins with redis://, rediss:// or unix://, e.g. {_EXAMPLE}")
    try:
        parts = urlsplit(address)
        path = parts.path.strip("/")
        _require(path.isdecimal() or not path or kind == "unix")
        read = dict(parse_url(address))
    except ValueError:
        raise ValueError(
            "not a Redis URL: write scheme://user:password@host:port/number, with / @ : ? and # in the password as "
            f"%2F %40 %3A %3F and %23, e.g. {_EXAMPLE}"
        ) from None
    options = _options(kind, query)
    return _new_address(
        options,
        kind=kind,
        hosts=() if kind == "unix" else ((read.get("host", "localhost"), int(read.get("port", _REDIS_PORT))),),
        path=read.get("path"),
        database=options.pop("db", int(read.get("db", 0))),
        username=options.pop("username", read.get("username")),
        password=options.pop("password", read.get("password")),
    )


_SCHEMES: Mapping[str, Kind] = {"redis": "tcp", "rediss": "tls", "unix": "unix"}


def _new_address(options: dict[str, Any], **address: Any) -> RedisAddress:
    return RedisAddress(
        **address,
        max_connections=options.pop("max_connections", MOST_CONNECTIONS),
        wait=options.pop("timeout", LONGEST_WAIT),
        options=options,
    )


def _netloc(address: str, port: int) -> tuple[str | None, str | None, tuple[tuple[str, int], ...]]:
    """The username, the password and the hosts of an address."""
    netloc = address.partition("://")[2].partition("/")[0]
    user_info, _, hosts = netloc.rpartition("@")
    username, _, password = user_info.partition(":")
    return unquote(username) or None, unquote(password) or None, tuple(_host(each, port) for each in hosts.split(","))


def _host(text: str, port: int) -> tuple[str, int]:
    found = _HOST.fullmatch(text)
    _require(found)
    assert found is not None  # noqa: S101 - just required
    number = int(found["port"] or port)
    _require(0 < number < 65536)
    return found["ipv6"] or found["name"], number


def _without_brackets(address: str) -> str:
    """The address for `urlsplit`, which accepts brackets around one host at most."""
    return address.replace("[", "").replace("]", "")


@contextmanager
def _with_example(shape: str) -> Iterator[None]:
    """Replace any `ValueError` by one that shows the shape of a correct URL."""
    try:
        yield
    except ValueError:
        raise ValueError(
            f"write {shape}, with IPv6 addresses in brackets, and / @ : ? and # in the password as %2F %40 %3A %3F and "
            "%23"
        ) from None


def _require(fulfilled: object) -> None:
    if not fulfilled:
        raise ValueError


def _options(kind: Kind, query: str) -> dict[str, Any]:
    """The options in `query`, converted to what redis-py expects.

    Raises:
        ValueError: an option does not work.
    """
    options: dict[str, Any] = {}
    for name, value in (_split(part) for part in query.split("&") if part):
        if name in _FIXED:
            values, reason = _FIXED[name]
            if value.lower() not in values:
                raise ValueError(f"the option {name}: {reason}")
        else:
            options[name] = _read(kind, name, value)
    return options


def _split(part: str) -> tuple[str, str]:
    name, _, value = part.partition("=")
    return unquote(name), unquote(value)


def _read(kind: Kind, name: str, value: str) -> Any:
    option = _OPTIONS.get(name)
    if option is None:
        known = sorted(name for name, each in _OPTIONS.items() if kind in each.kinds)
        # The name may be a piece of a password that contains a question mark.
        shown = repr(name) if name.isidentifier() else "with this name"
        raise ValueError(f"there is no option {shown}: leave it out, or write one of {', '.join(known)}")
    if kind not in option.kinds:
        raise ValueError(f"the option {name} is for {' and '.join(_URL_PREFIXES[each] for each in option.kinds)}")
    try:
        return option.read(value)
    except ValueError:
        raise ValueError(f"the option {name} must be {option.expected}") from None


def _seconds(text: str) -> float:
    seconds = float(text)
    _require(0 < seconds < float("inf"))
    return seconds


def _count(text: str) -> int:
    _require(text.isdecimal() and int(text) > 0)
    return int(text)


def _number(text: str) -> int:
    _require(text.isdecimal())
    return int(text)


def _switch(text: str) -> bool:
    _require(text.lower() in _TRUE | _FALSE)
    return text.lower() in _TRUE


def _word(text: str) -> str:
    _require(text and not re.search(r"\s", text))
    return text


def _certificates(text: str) -> str:
    """The requirement by redis-py's name. Celery and others write ``CERT_NONE``."""
    name = text.lower().removeprefix("cert_")
    _require(name in ("none", "optional", "required"))
    return name


_TRUE, _FALSE = frozenset({"true", "1", "yes", "y", "t", "on"}), frozenset({"false", "0", "no", "n", "f", "off"})
_URL_PREFIXES: Mapping[Kind, str] = {
    "tcp": "redis://",
    "tls": "rediss://",
    "unix": "unix://",
    "sentinel": SENTINEL,
    "cluster": CLUSTER,
}
_ANY: tuple[Kind, ...] = ("tcp", "tls", "unix", "sentinel", "cluster")
_ONE_SERVER: tuple[Kind, ...] = ("tcp", "tls", "unix")
_BY_TCP: tuple[Kind, ...] = ("tcp", "tls", "sentinel", "cluster")


@dataclass(frozen=True, slots=True)
class _Option:
    read: Callable[[str], Any]
    expected: str = "a text"
    kinds: tuple[Kind, ...] = _ANY


_OPTIONS: Mapping[str, _Option] = {
    "db": _Option(_number, "the number of a database", _ONE_SERVER),
    "username": _Option(str, kinds=_ONE_SERVER),
    "password": _Option(str, kinds=_ONE_SERVER),
    "sentinel_username": _Option(str, kinds=("sentinel",)),
    "sentinel_password": _Option(str, kinds=("sentinel",)),
    "client_name": _Option(_word, "a name without spaces"),
    "max_connections": _Option(_count, "a whole number, 1 or more"),
    "timeout": _Option(_seconds, "a number of seconds, more than 0"),
    "socket_timeout": _Option(_seconds, "a number of seconds, more than 0"),
    "socket_connect_timeout": _Option(_seconds, "a number of seconds, more than 0", _BY_TCP),
    "socket_keepalive": _Option(_switch, "true or false", _BY_TCP),
    "health_check_interval": _Option(_number, "a whole number of seconds"),
    "ssl_ca_certs": _Option(str, kinds=("tls",)),
    "ssl_ca_data": _Option(str, kinds=("tls",)),
    "ssl_cert_reqs": _Option(_certificates, "none, optional or required", ("tls",)),
    "ssl_certfile": _Option(str, kinds=("tls",)),
    "ssl_check_hostname": _Option(_switch, "true or false", ("tls",)),
    "ssl_ciphers": _Option(str, kinds=("tls",)),
    "ssl_keyfile": _Option(str, kinds=("tls",)),
}

_FIXED: Mapping[str, tuple[frozenset[str], str]] = {
    "decode_responses": (_FALSE, "replies are read as bytes here, so it can only be false: leave it out"),
    "encoding": (frozenset({"utf-8", "utf8"}), "jobs are written in UTF-8: leave it out"),
    "protocol": (frozenset({"2"}), "Tandem speaks RESP 2: leave it out"),
    "retry_on_timeout": (
        _FALSE,
        "a command whose answer is late may have been run, so it is not sent again blindly: leave it out",
    ),
}
"""Options for which only one value works: the accepted values, and the reason."""

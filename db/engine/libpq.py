"""The parameters of a PostgreSQL URL, which are libpq's, translated for each driver.

Providers print URLs for libpq. psycopg is built on libpq and takes all of its parameters. asyncpg knows some of them by
other names, and others not at all. An unsupported parameter is refused by name; no parameter is dropped.
https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
"""

import difflib
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from sqlalchemy import URL

from db.errors import DatabaseURLError

DRIVERS = ("asyncpg", "psycopg", "psycopg_async")
"""The drivers whose arguments this module knows."""

_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")
_SESSION_ATTRIBUTES = ("any", "primary", "standby", "read-write", "read-only", "prefer-standby")
_FILES = ("sslrootcert", "sslcert", "sslkey", "sslcrl")
# asyncpg reads these parameters from a DSN alone.
_IN_DSN = (
    *("sslmode", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslpassword", "sslnegotiation"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version"),
)
_BESIDE_SYSTEM_CERTIFICATES = ("sslmode", "sslrootcert", "sslnegotiation")
_WHERE = ("host", "port")
_SAME_IN_ASYNCPG = ("target_session_attrs", "passfile", "krbsrvname", "gsslib", "service")
# Parameters of asyncpg and of SQLAlchemy's dialect for it, which are no strings.
_ASYNCPG_PARAMETERS = {
    "prepared_statement_cache_size": int,
    "statement_cache_size": int,
    "max_cached_statement_lifetime": int,
    "max_cacheable_statement_size": int,
}
# Values that ask for what asyncpg does anyway.
_ASYNCPG_DOES = {
    "channel_binding": ("prefer", "disable"),
    "gssencmode": ("prefer", "disable"),
    "load_balance_hosts": ("disable",),
    "sslcertmode": ("allow",),
    "sslcompression": ("0", "1"),
    "sslsni": ("1",),
    "client_encoding": ("utf8", "UTF8", "utf-8", "UTF-8"),
}
_SOCKET_OPTIONS = {
    "keepalives": (socket.SOL_SOCKET, "SO_KEEPALIVE"),
    "keepalives_idle": (socket.IPPROTO_TCP, "TCP_KEEPIDLE"),
    "keepalives_interval": (socket.IPPROTO_TCP, "TCP_KEEPINTVL"),
    "keepalives_count": (socket.IPPROTO_TCP, "TCP_KEEPCNT"),
    "tcp_user_timeout": (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT"),
}
_WORKS_IN_ASYNCPG = {
    *("connect_timeout", "application_name", "fallback_application_name", "options"),
    *_IN_DSN,
    *_SAME_IN_ASYNCPG,
    *_ASYNCPG_PARAMETERS,
    *_SOCKET_OPTIONS,
}
# The other parameters of libpq, which only the driver that is built on libpq supports.
_NOT_IN_ASYNCPG = {
    *("hostaddr", "sslcrldir", "sslkeylogfile", "requirepeer", "require_auth", "gssdelegation", "replication"),
    *("min_protocol_version", "max_protocol_version", "scram_client_key", "scram_server_key"),
    *("oauth_issuer", "oauth_client_id", "oauth_client_secret", "oauth_scope"),
    *_ASYNCPG_DOES,
}
_FIELDS = {"user": "username", "password": "password", "dbname": "database", "database": "database"}
# Parameters of Prisma and others, which libpq does not know either.
_ADVICE = {
    "pgbouncer": "take it out, and make the database with db.Database(url, pooler=True)",
    "connection_limit": "take it out, and set WORKER_POOL_SIZE, or db.Database(url, pool_size=...)",
    "pool_timeout": "take it out, and make the database with db.Database(url, pool_timeout=...)",
    "schema": "write options=-csearch_path%3D<schema> instead",
}


def checked(url: URL) -> URL:
    """Check the parameters of `url`, and return it with each of them under libpq's name.

    Raises:
        DatabaseURLError: the driver does not support a parameter, or a parameter or its value is unknown.
    """
    url = _with_fields(_with_sslmode(url))
    if url.get_driver_name() in DRIVERS:
        parameters = _single_values(url)
        _check_values(parameters)
        (_check_for_asyncpg if url.get_driver_name() == "asyncpg" else _check_for_psycopg)(parameters)
    return url


def connect_timeout(url: URL) -> float | None:
    """Seconds to open a connection, if the URL names them."""
    seconds = url.query.get("connect_timeout")
    return None if seconds is None else float(str(seconds))


def without_asyncpg_parameters(url: URL) -> URL:
    """`url` without the parameters that only asyncpg and SQLAlchemy's dialect for it know."""
    return url.difference_update_query(_ASYNCPG_PARAMETERS)


def for_sqlalchemy(url: URL) -> URL:
    """`url` with the place of the database alone. The rest is in `driver_arguments`. For `DRIVERS`."""
    return url.difference_update_query([name for name in url.query if name not in _WHERE])


def driver_arguments(url: URL) -> dict[str, Any]:
    """The URL's parameters as arguments of its driver's `connect`, without `connect_timeout`. For `DRIVERS`."""
    given = _single_values(url)
    given.pop("connect_timeout", None)
    return _asyncpg_arguments(given) if url.get_driver_name() == "asyncpg" else given


def settings_in(options: str) -> dict[str, str]:
    """The session settings in `options` (``-c name=value --name=value``). Empty if `options` holds anything else."""
    words = iter(re.sub(r"\\(.)", r"\1", word) for word in re.findall(r"(?:\\.|[^\s\\])+", options))
    settings = {}
    for word in words:
        setting = re.fullmatch(r"(?:-c|--)([\w.-]+)=(.*)", word + next(words, "") if word == "-c" else word, re.DOTALL)
        if setting is None:
            return {}
        settings[setting[1].replace("-", "_")] = setting[2]
    return settings


def options_for(settings: Mapping[str, str]) -> str:
    """The session settings as `options`. An entry that is `options` already stays as it is."""
    escaped = {name: re.sub(r"([\s\\])", r"\\\1", value) for name, value in settings.items() if name != "options"}
    words = [f"-c {name}={value}" for name, value in escaped.items()]
    return " ".join([*words, settings["options"]] if "options" in settings else words)


def _asyncpg_arguments(given: dict[str, str]) -> dict[str, Any]:
    arguments: dict[str, Any] = {name: given[name] for name in _SAME_IN_ASYNCPG if name in given}
    arguments |= {name: read(given[name]) for name, read in _ASYNCPG_PARAMETERS.items() if name in given}
    tls = {name: given[name] for name in _IN_DSN if name in given}
    if tls.get("sslrootcert") == "system":
        arguments["ssl"] = True  # the certificates that the system trusts, and the host's name
        del tls["sslrootcert"], tls["sslmode"]
    if tls:
        arguments["dsn"] = f"postgresql://?{urlencode(tls)}"
    name = given.get("application_name") or given.get("fallback_application_name")
    settings = _settings(given.get("options", "")) | ({"application_name": name} if name else {})
    if settings:
        arguments["server_settings"] = settings
    if any(name in given for name in _SOCKET_OPTIONS):
        arguments["socket_options"] = _socket_options(given)
    return arguments


def _socket_options(given: Mapping[str, str]) -> list[tuple[int, int, int]]:
    """Arguments of `setsockopt` for the options that this system has, as in libpq."""
    return [
        (level, getattr(socket, option), int(given[name]))
        for name, (level, option) in _SOCKET_OPTIONS.items()
        if name in given and hasattr(socket, option)
    ]


def _settings(options: str) -> dict[str, str]:
    """`options` as settings by name, which can be merged with others, or unchanged if it holds anything else."""
    return settings_in(options) or ({"options": options} if options else {})


def _with_sslmode(url: URL) -> URL:
    """Rename `ssl`, as asyncpg and others call it, to `sslmode`."""
    if "ssl" not in url.query:
        return url
    mode = {"true": "require", "1": "require", "false": "disable", "0": "disable"}.get(
        str(url.query["ssl"]).lower(), url.query["ssl"]
    )
    return url.difference_update_query(["ssl"]).update_query_dict({"sslmode": url.query.get("sslmode", mode)})


def _with_fields(url: URL) -> URL:
    """Move the user, password and database from the URL's query to their usual places."""
    for parameter, field in _FIELDS.items():
        if parameter in url.query:
            fields: dict[str, Any] = {field: str(url.query[parameter])}
            url = url.set(**fields).difference_update_query([parameter])
    return url


def _single_values(url: URL) -> dict[str, str]:
    for name, value in url.query.items():
        if name not in _WHERE and not isinstance(value, str):
            raise DatabaseURLError(f"{name} stands twice in the URL: give it once")
    return {name: str(value) for name, value in url.query.items() if name not in _WHERE}


def _check_values(parameters: Mapping[str, str]) -> None:
    _check_one_of("sslmode", parameters, _SSL_MODES)
    _check_one_of("target_session_attrs", parameters, _SESSION_ATTRIBUTES)
    for name in ("connect_timeout", *_SOCKET_OPTIONS, *_ASYNCPG_PARAMETERS):
        if name in parameters and not parameters[name].isdecimal():
            raise DatabaseURLError(f"{name} in the URL is a whole number, not {parameters[name]!r}")
    if parameters.get("connect_timeout", "1").strip("0") == "":
        raise DatabaseURLError("connect_timeout=0 in the URL would wait for ever: give it some seconds")
    for name in _FILES:
        if name in parameters and parameters[name] != "system" and not Path(parameters[name]).is_file():
            raise DatabaseURLError(f"{name} in the URL names a file that is not there: {parameters[name]}")
    if parameters.get("sslrootcert") == "system" and parameters.get("sslmode") != "verify-full":
        raise DatabaseURLError("sslrootcert=system in the URL needs sslmode=verify-full, as libpq says")


def _check_one_of(name: str, parameters: Mapping[str, str], values: tuple[str, ...]) -> None:
    if name in parameters and parameters[name] not in values:
        raise DatabaseURLError(f"{name} in the URL is one of {', '.join(values)}, not {parameters[name]!r}")


def _check_for_asyncpg(parameters: Mapping[str, str]) -> None:
    for name, value in parameters.items():
        if name in _WORKS_IN_ASYNCPG or value in _ASYNCPG_DOES.get(name, ()):
            continue
        if name in _NOT_IN_ASYNCPG:
            raise DatabaseURLError(
                f"{name}{f'={value}' if name in _ASYNCPG_DOES else ''} in the URL needs another driver, as asyncpg "
                "does not support it: use postgresql+psycopg_async://, or take it out"
            )
        raise _unknown(name, _WORKS_IN_ASYNCPG)
    _check_system_certificates(parameters)


def _check_system_certificates(parameters: Mapping[str, str]) -> None:
    """Refuse other TLS parameters beside the system's certificates: with `ssl=True` asyncpg ignores them."""
    unread = [name for name in _IN_DSN if name in parameters and name not in _BESIDE_SYSTEM_CERTIFICATES]
    if parameters.get("sslrootcert") == "system" and unread:
        raise DatabaseURLError(
            f"sslrootcert=system and {unread[0]} in the URL need another driver, as asyncpg does not support "
            "them together: use postgresql+psycopg_async://, or name the file of certificates"
        )


def _check_for_psycopg(parameters: Mapping[str, str]) -> None:
    from psycopg import pq  # noqa: PLC0415 - an app with asyncpg alone has no psycopg

    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    for name in parameters:
        if name not in known:
            raise _unknown(name, known)


def _unknown(name: str, known: set[str]) -> DatabaseURLError:
    if name in _ADVICE:
        return DatabaseURLError(f"{name} in the URL is no parameter of PostgreSQL: {_ADVICE[name]}")
    near = difflib.get_close_matches(name, known, 1)
    return DatabaseURLError(
        f"{name} in the URL is no parameter of PostgreSQL: " + (f"write {near[0]}" if near else "take it out")
    )

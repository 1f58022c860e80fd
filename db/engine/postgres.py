"""PostgreSQL: the arguments that a connection is opened with, and its drivers' errors for an unreachable server.

Limits are set once, when a connection is opened, and cost no statement.
"""

import re
import select
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.util import await_only

from db.engine.libpq import options_for, settings_in
from db.engine.reset import driver_connection_of
from db.engine.sqlalchemy_version import asyncpg_error
from db.errors import DatabaseUnreachableError, DatabaseURLError

UNASKED = 1.0
"""Seconds after its last use for which a connection is taken for alive."""

# Messages of asyncpg that have no class or code of their own.
_BUSY = "another operation is in progress"
# asyncpg's state 2 (``coreproto.pxd``) of an idle connection: the server has sent its last error, and closes next.
_TOLD_TO_GO = "another operation (2) is in progress"
# The server's messages for a temporary refusal, in the one place where psycopg passes no code on.
_NOT_NOW = (
    "too many clients", "remaining connection slots", "starting up", "shutting down", "recovery mode",
    "not yet accepting connections", "not accepting connections",
)  # fmt: skip

# Up to the next field of the server's message, or to its end.
_DETAIL = re.compile(r"\nDETAIL:  .*?(?=\n(?:HINT|QUERY|CONTEXT|LOCATION):  |\Z)", re.DOTALL)
# A pooler's answer to our limits; and the server's errors behind a pooler that has ignored the limits and gives one
# connection to one client after the other.
_NO_SETTING_OF_A_SESSION = "unsupported startup parameter"
_STATEMENT_OF_ANOTHER_CLIENT = re.compile('prepared statement "__asyncpg_.*(already exists|does not exist)')


def asyncpg_arguments(
    *, connect_timeout: float, statement_timeout: float, idle_in_transaction_timeout: float, pooler: bool
) -> dict[str, Any]:
    """`connect_args` for asyncpg. All times are in seconds.

    The client's limit comes after the server's. So a server that can still answer reports its own limit first, and the
    client's limit covers a server that cannot.
    """
    arguments: dict[str, Any] = {
        "async_creator_fn": _connect,
        "timeout": connect_timeout,
        "command_timeout": statement_timeout + connect_timeout,
    }
    if pooler:
        # A backend of PgBouncer's transaction mode serves many clients in turn. Names of prepared statements must not
        # collide, and one client's settings would reach the next. https://www.pgbouncer.org/features.html
        return arguments | {
            "statement_cache_size": 0,
            "prepared_statement_cache_size": 0,
            "prepared_statement_name_func": lambda: f"__{uuid4().hex}__",
        }
    return arguments | {"server_settings": _settings(statement_timeout, idle_in_transaction_timeout)}


def psycopg_arguments(
    *, connect_timeout: float, statement_timeout: float, idle_in_transaction_timeout: float, pooler: bool
) -> dict[str, Any]:
    """`connect_args` for psycopg. All times are in seconds.

    psycopg has no time limit for a statement. So the socket gets one for a peer that has stopped answering.
    """
    arguments: dict[str, Any] = {
        "connect_timeout": max(1, round(connect_timeout)),
        "tcp_user_timeout": round((statement_timeout + connect_timeout) * 1000),
        "keepalives_idle": max(1, round(connect_timeout)),
    }
    if pooler:
        return arguments | {"prepare_threshold": None}
    return arguments | {"options": options_for(_settings(statement_timeout, idle_in_transaction_timeout))}


def merged(*arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Merge several `connect_args`. Later ones win, and their session settings are combined."""
    together: dict[str, Any] = {}
    for each in arguments:
        settings = {**together.get("server_settings", {}), **_by_name(each.get("server_settings", {}))}
        options = " ".join(filter(None, (together.get("options"), each.get("options"))))
        together = {**together, **each}
        if settings:
            together["server_settings"] = settings
        if options:
            together["options"] = options
    return together


def ping_idle_in_one_round_trip(engine: AsyncEngine, timeout: float) -> None:
    """Let the pool ping an asyncpg connection with one plain statement, for `timeout` seconds at most.

    SQLAlchemy's own ping is a transaction around a prepared statement: three round trips or more, without a time limit.
    A connection that was returned less than `UNASKED` seconds ago is pinged only if the server has sent something
    since, such as the end of the connection.
    """

    import asyncpg  # noqa: PLC0415 - a SQLite-only app has no asyncpg loaded

    returned: WeakKeyDictionary[Any, float] = WeakKeyDictionary()

    def note_time(dbapi_connection: Any, _record: Any) -> None:
        if dbapi_connection is not None:
            returned[driver_connection_of(dbapi_connection)] = time.monotonic()

    def ping(dbapi_connection: Any) -> bool:
        driver_connection = driver_connection_of(dbapi_connection)
        if time.monotonic() - returned.get(driver_connection, 0.0) < UNASKED and _is_silent(driver_connection):
            return True
        try:
            # Not an empty statement, on which asyncpg 0.32 fails.
            await_only(driver_connection.execute("SELECT 1", timeout=timeout))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
            return False
        return True

    # A public method of the dialect; there is no event for it.
    engine.sync_engine.dialect.do_ping = ping  # type: ignore[method-assign]
    event.listen(engine.sync_engine, "checkin", note_time)


def _is_silent(driver_connection: Any) -> bool:
    """Whether nothing has come from the server since its last answer. The system knows it before the event loop."""
    transport = driver_connection._transport  # noqa: SLF001 - asyncpg has no public name for it
    if driver_connection.is_closed() or transport.is_closing() or not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(transport.get_extra_info("socket"), select.POLLIN)
    return not poll.poll(0)


def unreachable_error(error: BaseException, *, is_connecting: bool) -> DatabaseUnreachableError | None:
    """The error to raise instead of `error` if the server is away or does not answer, else None."""
    # OSErrors are asyncpg's timeout and errors of the network: the guards pass on the driver's errors alone.
    if isinstance(error, OSError) or (type(error).__name__ == "InternalClientError" and _TOLD_TO_GO in str(error)):
        unreachable = _unreachable(error)
        unreachable.was_connected = not is_connecting
        return unreachable
    if is_connecting and _is_psycopg_operational(error) and _is_temporary(str(error)):
        return _unreachable(error)
    return None


def pooler_error(error: BaseException) -> DatabaseURLError | None:
    """The error to raise instead of `error` if a pooler in transaction mode has caused it, else None."""
    said = str(error)
    if _NO_SETTING_OF_A_SESSION not in said and not _STATEMENT_OF_ANOTHER_CLIENT.search(said):
        return None
    return DatabaseURLError(
        f"PgBouncer or a pooler like it answers at the database's URL ({said.splitlines()[0]}): make the database with "
        "db.Database(url, default=True, pooler=True), without options and session settings"
    )


def hide_detail(*errors: BaseException | None) -> None:
    """Remove the server's DETAIL, which shows the values of a row, from the text of these errors and their causes.

    psycopg's `diag` still has it.
    """
    for error in errors:
        said = error
        while said is not None:
            if said.args and isinstance(said.args[0], str):
                said.args = (_DETAIL.sub("", said.args[0]), *said.args[1:])
            if isinstance(getattr(said, "detail", None), str):  # asyncpg's DETAIL, which is not in its args
                said.detail = None  # type: ignore[attr-defined]  # it was there
            said = said.__cause__


def is_busy(error: BaseException) -> bool:
    """Whether asyncpg has noticed two coroutines that use the connection at once."""
    return _BUSY in str(error) and "InterfaceError" in {type(error).__name__, *map(_name, type(error).__mro__)}


def is_read_only_server(driver_connection: Any) -> bool:
    """Whether the server is in recovery, or begins every transaction read-only, as it reports by itself.

    A server before PostgreSQL 14 does not report it. Then the answer is yes.
    """
    reported = [_reported(driver_connection, name) for name in ("in_hot_standby", "default_transaction_read_only")]
    return "on" in reported or reported == [None, None]


def has_lost_transaction(cursor: Any) -> bool:
    """Whether a psycopg connection is outside of a transaction after a statement."""
    info = getattr(getattr(cursor, "connection", None), "info", None)
    status = getattr(info, "transaction_status", None)
    return getattr(status, "name", None) == "IDLE"


def _reported(driver_connection: Any, name: str) -> str | None:
    """The last value of a setting that the server reports."""
    if hasattr(driver_connection, "pgconn"):  # psycopg
        value: bytes | None = driver_connection.pgconn.parameter_status(name.encode())
        return None if value is None else value.decode()
    return getattr(driver_connection.get_settings(), name, None)


async def _connect(*args: Any, socket_options: Sequence[tuple[int, int, int]] = (), **kwargs: Any) -> Any:
    """Open a connection. Network errors become one error, which a task's own errors cannot be mistaken for."""
    import asyncpg  # noqa: PLC0415 - a SQLite-only app has no asyncpg loaded

    try:
        connection = await asyncpg.connect(*args, **kwargs)
    except OSError as error:  # TimeoutError is one
        raise _unreachable(error) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if made := asyncpg_error(error):
            raise made from error
        raise
    if socket_options:
        _set(connection, socket_options)
    return connection


def _set(connection: Any, socket_options: Sequence[tuple[int, int, int]]) -> None:
    network = connection._transport.get_extra_info("socket")  # noqa: SLF001 - asyncpg has no public name for it
    if network.family != socket.AF_UNIX:
        for option in socket_options:
            network.setsockopt(*option)


def _by_name(server_settings: Mapping[str, str]) -> dict[str, str]:
    # The server reads `options` before the settings by name, which would win then.
    settings = dict(server_settings)
    if by_name := settings_in(settings.get("options", "")):
        del settings["options"]
    return by_name | settings


def _unreachable(error: BaseException) -> DatabaseUnreachableError:
    reason = str(error).partition("\n")[0] or type(error).__name__
    return DatabaseUnreachableError(f"no answer from PostgreSQL ({reason}): is it running, and is DATABASE_URL right?")


def _is_psycopg_operational(error: BaseException) -> bool:
    return type(error).__module__.startswith("psycopg") and "OperationalError" in map(_name, type(error).__mro__)


def _is_temporary(message: str) -> bool:
    # FATAL without one of these messages is final: a wrong password, or an unknown database.
    return "FATAL" not in message or any(words in message for words in _NOT_NOW)


def _name(kind: type) -> str:
    return kind.__name__


def _settings(statement_timeout: float, idle_in_transaction_timeout: float) -> dict[str, str]:
    return {
        "statement_timeout": _milliseconds(statement_timeout),
        "idle_in_transaction_session_timeout": _milliseconds(idle_in_transaction_timeout),
    }


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))

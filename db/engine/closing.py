"""Closing statements: they are sent in one message with the COMMIT, and so cost no round trip.

1. asyncpg's connections alone can do this. A statement that SQLAlchemy has prepared on the connection is run by its
   name, with its values as literals: ``EXECUTE name(...);COMMIT``.
2. A closing statement may fail. The server then skips the COMMIT. It fails, too, if it waits for another transaction's
   lock for longer than `LOCK_TIMEOUT`.
3. A rollback drops the closing statements of its transaction.

A statement goes on its own wherever it could mean anything else: with another driver, a pooler, AUTOCOMMIT, a changed
setting, listeners for statements, or a value that no short literal can hold.
"""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import RootTransaction

from db.engine.reset import driver_connection_of, may_have_changed

LOCK_TIMEOUT = 2000
"""Milliseconds for which a closing statement waits for a lock. The COMMIT itself has no such limit."""

_CLOSING = "db.closing"
_LONGEST = 16 * 1024  # characters: as literals, more would cost more than a round trip
_EVENTS = ("before_execute", "after_execute", "before_cursor_execute", "after_cursor_execute")


def can_close(connection: Connection) -> bool:
    """Whether a statement means the same in the COMMIT of the connection's open transaction as on its own."""
    if connection.dialect.driver != "asyncpg" or type(connection.get_transaction()) is not RootTransaction:
        return False
    pooled = connection.connection
    adapted: Any = pooled.dbapi_connection
    if getattr(adapted, "_transaction", None) is None:  # AUTOCOMMIT
        return False
    settings = driver_connection_of(adapted).get_settings()
    is_plain = settings.standard_conforming_strings == "on" and settings.client_encoding in ("UTF8", "utf-8")
    return is_plain and not may_have_changed(pooled) and not has_listeners(connection, *_EVENTS)


def closes(connection: Connection, sql: str, values: Iterable[Any]) -> bool:
    """Send a statement with the COMMIT of the connection's open transaction, for which `can_close` holds.

    Call it last before the COMMIT.

    Args:
        sql: the statement, whose result is not read.
        values: its parameters, each an `int`, a `str`, `bytes` or None.

    Returns:
        Whether it will be sent so. If not, run it by itself: `Connection.exec_driver_sql` also prepares it for the next
        transaction.
    """
    name = _prepared(connection, sql)
    literals = None if name is None else _literals(values)
    if literals is None:
        return False
    connection.info.setdefault(_CLOSING, []).append(f"EXECUTE {name}({literals});")
    return True


def take_closing(info: dict[Any, Any]) -> str:
    """Take the closing statements of the connection with this `info`. An empty text if it has none."""
    return "".join(info.pop(_CLOSING, ()))


async def commit_with(closing: str, adapted: Any) -> None:
    """Send `closing` and COMMIT in one message.

    Args:
        adapted: SQLAlchemy's adapted connection of asyncpg, in a transaction.

    Raises:
        Exception: SQLAlchemy's error of the dialect. After one from a closing statement the transaction is still to be
            rolled back, as after any statement.
    """
    driver_connection, is_refused = adapted._connection, False  # noqa: SLF001 - asyncpg has no public way to do this
    import asyncpg  # noqa: PLC0415 - an app without asyncpg never comes here

    try:
        # The limit ends before the COMMIT, whose deferred constraints may wait for as long as the session allows.
        limited = f"SET LOCAL lock_timeout={LOCK_TIMEOUT};{closing}SET LOCAL lock_timeout TO DEFAULT;"
        await driver_connection.execute(f"{limited}COMMIT")
    except asyncpg.PostgresError as error:
        is_refused = not driver_connection.is_closed() and driver_connection.is_in_transaction()
        adapted._handle_exception(error)  # noqa: SLF001 - likewise
    except Exception as error:  # noqa: BLE001 - as the dialect's own COMMIT does
        adapted._handle_exception(error)  # noqa: SLF001 - likewise
    finally:
        if not is_refused:
            adapted._transaction = driver_connection._top_xact = None  # noqa: SLF001 - likewise
            if hasattr(adapted, "_started"):  # SQLAlchemy 2.0
                adapted._started = False  # noqa: SLF001 - likewise


def _prepared(connection: Connection, sql: str) -> str | None:
    """The name of the statement that SQLAlchemy has prepared for `sql` on this connection, if any."""
    adapted: Any = connection.connection.dbapi_connection
    prepared = adapted._prepared_statement_cache  # noqa: SLF001 - no public name; None behind a pooler
    entry = None if prepared is None else prepared.get(sql)
    return None if entry is None else entry[0].get_name()


def _literals(values: Iterable[Any]) -> str | None:
    """The values as SQL literals, where standard_conforming_strings is on. None if one has no short literal."""
    literals = ",".join(map(_literal, values))
    # A NUL would end the message early. A lone surrogate has no UTF-8.
    if len(literals) > _LONGEST or "\0" in literals or not (literals.isascii() or _is_utf8(literals)):
        return None
    return literals


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, bytes):
        return f"'\\x{value.hex()}'"
    return "'" + str(value).replace("'", "''") + "'"


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def has_listeners(connection: Connection, *events: str) -> bool:
    """Whether the connection has listeners for any of SQLAlchemy's `events`."""
    # SQLAlchemy checks these flags before each event. Asking for the listeners would build lists for each connection.
    if not (getattr(connection, "_has_events", True) or getattr(connection.engine, "_has_events", True)):
        return False
    return any(getattr(connection.dispatch, event) for event in events)

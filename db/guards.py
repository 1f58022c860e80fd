"""What SQLAlchemy and the drivers let pass silently, made into errors at the engine.

1. A swallowed error aborts the transaction on the server, which then answers COMMIT with ROLLBACK and nobody says so:
   the connection is marked, and its COMMIT refused.
2. COMMIT, ROLLBACK or BEGIN sent as text ends the transaction behind its owner's back: refused.
3. A server that has become read-only keeps its connections: such an error counts as a lost connection.
"""

import re
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.pool import ConnectionPoolEntry

from db import sqlite
from db.errors import PoisonedTransactionError, RawTransactionError
from db.transient import sqlstate

_MARK = "db.poisoned"
_READ_ONLY = "25006"
# ROLLBACK TO and RELEASE are savepoints, which leave the transaction open; comments may come first.
_ENDS_TRANSACTION = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
    r"(commit|end|abort|begin|start\s+transaction|prepare\s+transaction|rollback(?!\s+(?:work\s+|transaction\s+)?to\b))\b",
    re.IGNORECASE | re.DOTALL,
)


def watch(engine: Engine) -> None:
    """Guard every connection of `engine` from now on."""
    event.listen(engine, "handle_error", _mark_poisoned)
    event.listen(engine, "commit", _refuse_poisoned)
    event.listen(engine, "rollback", _clear)
    event.listen(engine, "rollback_savepoint", _clear)
    event.listen(engine, "checkin", _clear_returned)
    event.listen(engine, "before_cursor_execute", _refuse_raw)


def roll_back_if_poisoned(connection: Connection, savepoint: str) -> None:
    """Roll back to `savepoint` and raise, if the server has aborted the transaction: RELEASE would fail for ever.

    Raises:
        PoisonedTransactionError: it has.
    """
    if _MARK in connection.info:
        connection.dialect.do_rollback_to_savepoint(connection, savepoint)
        _clear(connection)
        raise PoisonedTransactionError


def _mark_poisoned(context: ExceptionContext) -> None:
    if sqlstate(context.original_exception) == _READ_ONLY:
        context.is_disconnect = True
    connection = context.connection
    if connection is None or context.is_disconnect or connection.invalidated:
        return
    if connection.in_transaction() and _aborted_by_server(connection, context.original_exception):
        connection.info[_MARK] = True


def _aborted_by_server(connection: Connection, error: BaseException) -> bool:
    """Whether the server itself reported `error`, which aborts a PostgreSQL transaction.

    An error that the driver raises before it sends anything (a value of the wrong type) leaves the transaction whole.
    A server's report has a severity; asyncpg and psycopg both keep it.
    """
    if connection.dialect.name != "postgresql" or _autocommits(connection):
        return False
    driver_error = getattr(error, "driver_exception", error)
    report = getattr(driver_error, "diag", driver_error)
    return getattr(report, "severity", None) is not None


def _autocommits(connection: Connection) -> bool:
    dbapi_connection: Any = connection.connection.dbapi_connection
    return bool(getattr(dbapi_connection, "autocommit", False))


def _refuse_poisoned(connection: Connection) -> None:
    if _MARK in connection.info:
        raise PoisonedTransactionError


def _clear(connection: Connection, *_: Any) -> None:
    if not connection.invalidated:
        connection.info.pop(_MARK, None)


def _clear_returned(_dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    # A refused COMMIT ends SQLAlchemy's transaction without a ROLLBACK of its own; the pool sends it.
    record.info.pop(_MARK, None)


def _refuse_raw(
    _connection: Connection, _cursor: Any, statement: str, _parameters: Any, _context: Any, _many: bool
) -> None:
    found = _ENDS_TRANSACTION.match(statement)
    if found and statement != sqlite.BEGIN:
        raise RawTransactionError(found[1].upper())

"""What SQLAlchemy and the drivers let pass silently, made into errors at the engine.

1. A swallowed error aborts the transaction on the server, which then answers COMMIT with ROLLBACK and nobody says so:
   the connection is marked, and its COMMIT refused.
2. COMMIT, ROLLBACK or BEGIN sent as text ends the transaction behind its owner's back: refused.
3. A server that has become read-only keeps its connections: such an error counts as a lost connection.
4. A server that does not answer, or that is not there, is reported by each driver in its own way: one error for all.
5. SQLAlchemy's asyncpg begins on the server with its own first statement: what the driver itself is asked for before
   that would be committed at once, whatever became of the session. It begins when SQLAlchemy does.
6. A cancellation that asyncpg swallows while it writes many rows is heeded (:mod:`db.executemany`).
"""

import re
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext, ExecutionContext
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.util import await_only

from db import postgres, sqlite
from db.errors import ConcurrentUseError, PoisonedTransactionError, RawTransactionError
from db.executemany import heed_cancellation
from db.transient import sqlstate

_MARK = "db.poisoned"
_READ_ONLY = "25006"
_TO_SAVEPOINT = r"rollback\s+(?:work\s+|transaction\s+)?to\b"
_ENDS_TRANSACTION = re.compile(
    rf"(?!{_TO_SAVEPOINT})(commit|end|abort|begin|start\s+transaction|prepare\s+transaction|rollback)\b", re.IGNORECASE
)
_ROLLS_BACK_TO_SAVEPOINT = re.compile(_TO_SAVEPOINT, re.IGNORECASE)
# One pattern for all that may come first would try ever more ways through several comments.
_BEFORE_WORDS = re.compile(r"[\s;]+|--[^\r\n]*|/\*")
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_SHORT = 4096  # characters; longer statements are read each time, as to remember them would be to keep them


class _Reading(NamedTuple):
    """What a statement's text says about the transaction that it runs in."""

    ends_by: str | None
    """The word by which it would end it."""
    is_to_savepoint: bool
    """Whether it rolls back to a savepoint."""
    may_be_several: bool
    """Whether there may be other statements in it, which end it."""


_HARMLESS = _Reading(None, is_to_savepoint=False, may_be_several=False)


def watch(engine: Engine) -> None:
    """Guard every connection of `engine` from now on; an engine that is watched already stays as it is.

    So does one with other execution options: its dialect and its pool are those of the engine that it was made of.
    """
    dialect: Any = engine.dialect
    if getattr(dialect.do_commit, "func", None) is _commit:
        return
    event.listen(engine, "handle_error", _handle_error)
    event.listen(engine, "checkin", _clear_returned)
    heed_cancellation(engine)
    # Not by the events of the same moments: where an engine has a single one of those, SQLAlchemy prepares each new
    # connection for all of them, which costs a short transaction a twentieth of its time.
    for name in ("do_execute", "do_execute_no_params", "do_executemany"):
        setattr(dialect, name, partial(_execute, getattr(dialect, name)))
    if dialect.driver == "asyncpg":
        dialect.do_begin = _begin
    dialect.do_commit = partial(_commit, dialect.do_commit)
    dialect.do_rollback = partial(_roll_back, dialect.do_rollback)
    dialect.do_rollback_to_savepoint = partial(_roll_back_to_savepoint, dialect.do_rollback_to_savepoint)


def roll_back_if_poisoned(connection: Connection, savepoint: str) -> None:
    """Roll back to `savepoint` and raise, if the server has aborted the transaction: RELEASE would fail for ever.

    Raises:
        PoisonedTransactionError: it has.
    """
    if _MARK in connection.info:
        cause = connection.info[_MARK]
        connection.dialect.do_rollback_to_savepoint(connection, savepoint)
        _clear(connection)
        raise PoisonedTransactionError from cause


def swallowed(connection: Connection) -> BaseException | None:
    """The error by which the server has aborted the transaction of `connection`, if it has."""
    error: BaseException | None = connection.info.get(_MARK)
    return error


def _handle_error(context: ExceptionContext) -> BaseException | None:
    error = context.original_exception
    if context.is_pre_ping:  # a connection that is found dead is replaced, and nobody need know
        return None
    if context.dialect.name == "postgresql" and _came_from_driver(context):
        if sqlstate(error) == _READ_ONLY:
            context.is_disconnect = True
        unreachable = postgres.unreachable(error, is_connecting=context.connection is None)
        if unreachable is not None:
            context.is_disconnect = True
            return unreachable
        if postgres.is_busy(error):
            return ConcurrentUseError()
        _mark_poisoned(context)
    return None


def _came_from_driver(context: ExceptionContext) -> bool:
    """Not from a type of the user's own that could not convert a parameter: nothing is executed yet."""
    return context.execution_context is not None or context.statement is None


def _mark_poisoned(context: ExceptionContext) -> None:
    connection = context.connection
    if connection is None or context.is_disconnect or connection.invalidated:
        return
    if connection.in_transaction() and _aborted_by_server(connection, context.original_exception):
        connection.info.setdefault(_MARK, context.sqlalchemy_exception)


def _aborted_by_server(connection: Connection, error: BaseException) -> bool:
    """Whether the server itself reported `error`, which aborts a PostgreSQL transaction.

    An error that the driver raises before it sends anything (a value of the wrong type) leaves the transaction whole.
    A server's report has a severity; asyncpg and psycopg both keep it.
    """
    if _autocommits(connection):
        return False
    # SQLAlchemy's own error for asyncpg has asyncpg's as its cause.
    report: BaseException | None = error
    while report is not None:
        if getattr(getattr(report, "diag", report), "severity", None) is not None:
            return True
        report = report.__cause__
    return False


def _autocommits(connection: Connection) -> bool:
    dbapi_connection: Any = connection.connection.dbapi_connection
    return bool(getattr(dbapi_connection, "autocommit", False))


def _begin(connection: PoolProxiedConnection) -> None:
    # The BEGIN that the first statement would have sent. psycopg sends its own before whatever it is asked for.
    dbapi_connection: Any = connection.dbapi_connection
    if dbapi_connection._transaction is None:  # noqa: SLF001 - there is no public way; a "begin" event may have begun
        await_only(dbapi_connection._start_transaction())  # noqa: SLF001 - likewise


def _commit(commit: Callable[[Any], None], connection: PoolProxiedConnection) -> None:
    noted = _info(connection)
    if _MARK in noted:
        raise PoisonedTransactionError from noted[_MARK]
    commit(connection)


def _roll_back(roll_back: Callable[[Any], None], connection: PoolProxiedConnection) -> None:
    _info(connection).pop(_MARK, None)
    roll_back(connection)


def _roll_back_to_savepoint(roll_back: Callable[[Any, str], None], connection: Connection, name: str) -> None:
    _clear(connection)
    roll_back(connection, name)


def _info(connection: PoolProxiedConnection) -> dict[Any, Any]:
    """What is noted of a connection; nothing on the one with which SQLAlchemy gets to know the server."""
    try:
        return connection.info
    except NotImplementedError:
        return {}


def _clear(connection: Connection) -> None:
    if not connection.invalidated:
        connection.info.pop(_MARK, None)


def _clear_returned(_dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    # A refused COMMIT ends SQLAlchemy's transaction without a ROLLBACK of its own; the pool sends it.
    record.info.pop(_MARK, None)


def _execute(execute: Callable[..., None], cursor: Any, statement: str, *rest: Any) -> None:
    reading = _remembered(statement) if len(statement) <= _SHORT else _read(statement)
    if reading.ends_by is not None:
        raise RawTransactionError(f"{reading.ends_by} was sent as text")
    execute(cursor, statement, *rest)
    if reading is not _HARMLESS and rest and isinstance(context := rest[-1], ExecutionContext):
        _look_at_transaction(context.root_connection, cursor, reading)


def _read(statement: str) -> _Reading:
    start = _first_word(statement)
    found = None if statement == sqlite.BEGIN else _ENDS_TRANSACTION.match(statement, start)
    to_savepoint = _ROLLS_BACK_TO_SAVEPOINT.match(statement, start) is not None
    reading = _Reading(None if found is None else found[1].upper(), to_savepoint, ";" in statement)
    return _HARMLESS if reading == _HARMLESS else reading


def _first_word(statement: str) -> int:
    """Where the first word of `statement` begins, after what the server ignores."""
    at = 0
    while before := _BEFORE_WORDS.match(statement, at):
        at = _end_of_comment(statement, at) if before[0] == "/*" else before.end()
    return at


def _end_of_comment(statement: str, start: int) -> int:
    """PostgreSQL's comments nest. SQLite's do not: what has no end for the one ends at the first `*/` for the other."""
    depth = 0
    for edge in _COMMENT_EDGE.finditer(statement, start):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    first = statement.find("*/", start + 2)
    return len(statement) if first < 0 else first + 2


# A job's few statements come again and again; to look one up, whose text is kept for it, costs less than to read it.
_remembered = lru_cache(maxsize=1024)(_read)


def _look_at_transaction(connection: Connection, cursor: Any, reading: _Reading) -> None:
    if reading.is_to_savepoint:
        _info(connection.connection).pop(_MARK, None)
    # psycopg sends several statements at once if they have no parameters.
    if reading.may_be_several and postgres.has_lost_transaction(cursor) and not _autocommits(connection):
        raise RawTransactionError("a statement among several ended the transaction")

"""Guards of an engine: errors where SQLAlchemy and the drivers would let a loss pass silently.

1. Swallowed errors. An error aborts the transaction on the server, which then answers COMMIT with a silent ROLLBACK.
   The guard marks the connection and refuses its COMMIT.
2. Transaction control as text. COMMIT, ROLLBACK or BEGIN as a statement would end the transaction without its owner.
   The guard refuses it.
3. Read-only servers. A server that has become read-only keeps its connections. Its error counts as a lost connection,
   unless the transaction itself was made read-only.
4. Unreachable servers. Each driver reports them in its own way. The guard raises one error for all drivers.
5. Ended connections. A server may end a connection for an act of the session: it sat idle for too long, or ended its
   own backend. Another try would end in the same way. The guard says so, where drivers report a lost connection.
6. Late BEGIN. SQLAlchemy's asyncpg dialect sends BEGIN with its first statement. A direct use of the driver before that
   would be committed at once. The guard sends BEGIN when SQLAlchemy begins.
7. Swallowed cancellations. asyncpg swallows a cancellation while it writes many rows. The guard passes it on as a
   timeout (:mod:`db.engine.executemany`).
"""

import re
import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext, ExecutionContext
from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection
from sqlalchemy.util import await_only

from db.engine import postgres, sqlite
from db.engine.closing import commit_with, take_closing
from db.engine.effects import Effect, effects
from db.engine.executemany import honor_cancellation
from db.engine.reset import driver_connection_of, forget_effects, may_have, note_effects
from db.engine.sqlalchemy_version import hide_class
from db.errors import ConcurrentUseError, ConnectionEndedError, PoisonedTransactionError, RawTransactionError
from db.transient import sqlstate

_POISONED = "db.poisoned"
_STATEMENT_TIMES = "db.statement_times"
_READ_ONLY = "25006"
_TOOK_TOO_LONG = frozenset({"25P03", "25P04"})
_ALMOST = 0.9  # of a limit, as the server's clock starts a little earlier
_TO_SAVEPOINT = r"rollback\s+(?:work\s+|transaction\s+)?to\b"
_ENDS_TRANSACTION = re.compile(
    rf"(?!{_TO_SAVEPOINT})(commit|end|abort|begin|start\s+transaction|prepare\s+transaction|rollback)\b", re.IGNORECASE
)
_ROLLS_BACK_TO_SAVEPOINT = re.compile(_TO_SAVEPOINT, re.IGNORECASE)
# One pattern for everything before the first word would backtrack through several comments.
_BEFORE_WORDS = re.compile(r"[\s;]+|--[^\r\n]*|/\*")
_COMMENT_EDGE = re.compile(r"/\*|\*/")
_SHORT = 4096  # characters; longer statements are parsed each time, as the cache would keep their text


class _StatementFacts(NamedTuple):
    """The facts that a statement's text tells about its transaction."""

    ends_by: str | None
    """The word by which the statement would end its transaction."""
    is_to_savepoint: bool
    """Whether the statement rolls back to a savepoint."""
    may_be_several: bool
    """Whether the text may hold several statements, one of which ends the transaction."""
    effects: Effect
    """The other possible effects."""


_PLAIN = _StatementFacts(None, is_to_savepoint=False, may_be_several=False, effects=Effect.NONE)


def install(engine: Engine, *, idle_limit: float | None = None) -> None:
    """Guard every connection of `engine` from now on. An engine that is guarded already stays as it is.

    So does a copy with other execution options, which shares its dialect and pool with the original.

    Args:
        engine: of any of the known drivers.
        idle_limit: seconds after which the server ends an idle transaction, if known.
    """
    dialect: Any = engine.dialect
    if getattr(dialect.do_commit, "func", None) is _commit:
        return
    event.listen(engine, "handle_error", partial(_translate_error, idle_limit))
    event.listen(engine, "checkin", partial(_clear_returned, dialect.driver == "asyncpg"))
    honor_cancellation(engine)
    # Dialect methods and not events: with a single such event on an engine SQLAlchemy prepares each new connection for
    # all of them, which costs a short transaction a twentieth of its time.
    for name in ("do_execute", "do_execute_no_params", "do_executemany"):
        setattr(dialect, name, partial(_execute, getattr(dialect, name)))
    dialect.do_begin = partial(_begin, dialect.do_begin, begins_late=dialect.driver == "asyncpg")
    dialect.do_commit = partial(_commit, dialect.do_commit)
    dialect.do_rollback = partial(_roll_back, dialect.do_rollback)
    dialect.do_rollback_to_savepoint = partial(_roll_back_to_savepoint, dialect.do_rollback_to_savepoint)


def refuse_poisoned_savepoint(connection: Connection, savepoint: str) -> None:
    """Roll back to `savepoint` and raise, if the server has aborted the transaction. RELEASE would fail for ever.

    Raises:
        PoisonedTransactionError: the server has aborted the transaction.
    """
    if _POISONED in connection.info:
        cause = connection.info[_POISONED]
        connection.dialect.do_rollback_to_savepoint(connection, savepoint)
        _clear(connection)
        raise PoisonedTransactionError from cause


def swallowed_error(connection: Connection) -> BaseException | None:
    """The error with which the server aborted the transaction of `connection`, if any."""
    error: BaseException | None = connection.info.get(_POISONED)
    return error


def may_be_read_only(connection: Connection) -> bool:
    """Whether the transaction of `connection` may have been made read-only, other than inside a function."""
    if connection.dialect.name != "postgresql":
        return False
    dbapi_connection: Any = connection.connection.dbapi_connection
    by_option = getattr(dbapi_connection, "readonly", None) or getattr(dbapi_connection, "read_only", None)
    return bool(by_option) or may_have(Effect.READ_ONLY, _info(connection.connection))


def _translate_error(idle_limit: float | None, context: ExceptionContext) -> BaseException | None:
    error = context.original_exception
    if context.is_pre_ping:  # the pool replaces a dead connection without an error
        return None
    if context.dialect.name == "postgresql" and _came_from_driver(context):
        hide_class(context.sqlalchemy_exception, error)
        if context.engine is not None and context.engine.hide_parameters:
            postgres.hide_detail(context.sqlalchemy_exception, error)
        if sqlstate(error) == _READ_ONLY and _is_server_read_only(context.connection):
            context.is_disconnect = True
        if (why := _reason_it_was_ended(context, idle_limit)) is not None:
            context.is_disconnect = True
            context.invalidate_pool_on_disconnect = False  # the other connections are not at fault
            return ConnectionEndedError(why)
        unreachable_error = postgres.unreachable_error(error, is_connecting=context.connection is None)
        if unreachable_error is not None:
            context.is_disconnect = True
            return unreachable_error
        if postgres.is_busy(error):
            return ConcurrentUseError()
        _mark_poisoned(context)
        return postgres.pooler_error(error)
    return None


def _is_server_read_only(connection: Connection | None) -> bool:
    """Whether the server takes no writes, and not only this transaction."""
    if connection is None or connection.invalidated:
        return True
    return not may_be_read_only(connection) and postgres.is_read_only_server(
        driver_connection_of(connection.connection.dbapi_connection)
    )


def _reason_it_was_ended(context: ExceptionContext, idle_limit: float | None) -> str | None:
    """The act of the session for which the server ended its connection, or None."""
    error, connection = context.original_exception, context.connection
    if sqlstate(error) in _TOOK_TOO_LONG:
        return str(error).partition("\n")[0]
    is_lost = context.is_disconnect or postgres.unreachable_error(error, is_connecting=False) is not None
    if not is_lost or connection is None or connection.invalidated:
        return None
    info = _info(connection.connection)
    if may_have(Effect.TERMINATION, info) and "pg_terminate_backend" in (context.statement or "").lower():
        return "its own statement ended its backend"
    if sqlstate(error) is not None:  # a statement was running, and the error says what ended it
        return None
    limit = 0.0 if may_have(Effect.TIME_LIMIT, info) else idle_limit
    idle = _idle_before_loss(info)
    if limit is None or idle <= limit * _ALMOST:
        return None
    return f"its transaction sat idle for {idle:.1f} s, longer than it may"


def _idle_before_loss(info: dict[Any, Any]) -> float:
    """Seconds that the transaction sat idle before the statement that has just failed."""
    started, ended = info.get(_STATEMENT_TIMES) or (0.0, 0.0)
    return (started if started > ended else time.monotonic()) - ended if ended else 0.0


def _came_from_driver(context: ExceptionContext) -> bool:
    """Whether the driver raised the error, and not a type of the user's own, before any execution."""
    return context.execution_context is not None or context.statement is None


def _mark_poisoned(context: ExceptionContext) -> None:
    connection = context.connection
    if connection is None or context.is_disconnect or connection.invalidated:
        return
    if connection.in_transaction() and _aborted_by_server(connection, context.original_exception):
        connection.info.setdefault(_POISONED, context.sqlalchemy_exception)


def _aborted_by_server(connection: Connection, error: BaseException) -> bool:
    """Whether the server itself reported `error`, which aborts a PostgreSQL transaction.

    An error that the driver raises before it sends anything (a value of the wrong type) leaves the transaction whole.
    A server's report has a severity, which asyncpg and psycopg both keep.
    """
    if _autocommits(connection):
        return False
    # SQLAlchemy's error for asyncpg has asyncpg's error as its cause.
    report: BaseException | None = error
    while report is not None:
        if getattr(getattr(report, "diag", report), "severity", None) is not None:
            return True
        report = report.__cause__
    return False


def _autocommits(connection: Connection) -> bool:
    dbapi_connection: Any = connection.connection.dbapi_connection
    return bool(getattr(dbapi_connection, "autocommit", False))


def _begin(begin: Callable[[Any], None], connection: PoolProxiedConnection, *, begins_late: bool) -> None:
    now = time.monotonic()
    _info(connection)[_STATEMENT_TIMES] = [now, now]
    begin(connection)
    dbapi_connection: Any = connection.dbapi_connection
    # The BEGIN that the first statement would have sent. psycopg sends its own BEGIN before any statement.
    if begins_late and dbapi_connection._transaction is None:  # noqa: SLF001 - no public way; a listener may have begun
        await_only(dbapi_connection._start_transaction())  # noqa: SLF001 - likewise


def _commit(commit: Callable[[Any], None], connection: PoolProxiedConnection) -> None:
    info = _info(connection)
    if _POISONED in info:
        raise PoisonedTransactionError from info[_POISONED]
    # A COMMIT whose answer is lost is in doubt, however long the transaction had sat idle.
    info.pop(_STATEMENT_TIMES, None)
    if closing := take_closing(info):
        await_only(commit_with(closing, connection.dbapi_connection))
    else:
        commit(connection)


def _roll_back(roll_back: Callable[[Any], None], connection: PoolProxiedConnection) -> None:
    info = _info(connection)
    info.pop(_POISONED, None)
    take_closing(info)
    roll_back(connection)


def _roll_back_to_savepoint(roll_back: Callable[[Any, str], None], connection: Connection, name: str) -> None:
    _clear(connection)
    roll_back(connection, name)


def _info(connection: PoolProxiedConnection) -> dict[Any, Any]:
    """The notes on a connection. Empty for the connection with which SQLAlchemy examines the server."""
    try:
        return connection.info
    except NotImplementedError:
        return {}


def _clear(connection: Connection) -> None:
    if not connection.invalidated:
        connection.info.pop(_POISONED, None)


def _clear_returned(is_asyncpg: bool, dbapi_connection: Any, record: ConnectionPoolEntry) -> None:
    # A refused COMMIT ends SQLAlchemy's transaction without a ROLLBACK of its own; the pool sends it.
    record.info.pop(_POISONED, None)
    take_closing(record.info)
    forget_effects(record.info)
    if is_asyncpg and dbapi_connection is not None and _is_in_transaction(driver_connection_of(dbapi_connection)):
        record.invalidate()


def _is_in_transaction(driver_connection: Any) -> bool:
    """Whether asyncpg or its server is in a transaction, as after a BEGIN, COMMIT or ROLLBACK that has failed.

    SQLAlchemy takes that transaction for ended, but no other one could begin on the connection.
    """
    if driver_connection.is_closed():
        return False
    has_begun = driver_connection._top_xact is not None  # noqa: SLF001 - no public way; its own reset asks the same
    return has_begun or bool(driver_connection.is_in_transaction())


def _execute(execute: Callable[..., None], cursor: Any, statement: str, *rest: Any) -> None:
    facts = _facts_of_short(statement) if len(statement) <= _SHORT else _facts(statement)
    if facts.ends_by is not None:
        raise RawTransactionError(f"{facts.ends_by} was sent as text")
    context = rest[-1] if rest else None
    if not isinstance(context, ExecutionContext):
        execute(cursor, statement, *rest)
        return
    connection = context.root_connection
    info = _info(connection.connection)
    if facts is not _PLAIN and facts.effects is not Effect.NONE:
        note_effects(info, facts.effects)  # before it runs: an advisory lock outlives the statement's failure
    times = info.get(_STATEMENT_TIMES) or [0.0, 0.0]
    times[0] = time.monotonic()
    execute(cursor, statement, *rest)
    times[1] = time.monotonic()
    if facts is not _PLAIN:
        _check_transaction(connection, cursor, facts)


def _facts(statement: str) -> _StatementFacts:
    start = _first_word(statement)
    found = None if statement == sqlite.BEGIN else _ENDS_TRANSACTION.match(statement, start)
    to_savepoint = _ROLLS_BACK_TO_SAVEPOINT.match(statement, start) is not None
    ends_by = None if found is None else found[1].upper()
    facts = _StatementFacts(ends_by, to_savepoint, ";" in statement, effects(statement, start))
    return _PLAIN if facts == _PLAIN else facts


def _first_word(statement: str) -> int:
    """The position of the first word of `statement`, after blanks, semicolons and comments."""
    at = 0
    while before := _BEFORE_WORDS.match(statement, at):
        at = _end_of_comment(statement, at) if before[0] == "/*" else before.end()
    return at


def _end_of_comment(statement: str, start: int) -> int:
    """The end of the comment at `start`, nested as in PostgreSQL, else at the first `*/` as in SQLite."""
    depth = 0
    for edge in _COMMENT_EDGE.finditer(statement, start):
        depth += 1 if edge[0] == "/*" else -1
        if depth == 0:
            return edge.end()
    first = statement.find("*/", start + 2)
    return len(statement) if first < 0 else first + 2


# A job's few statements come again and again. A look-up in the cache costs less than parsing.
_facts_of_short = lru_cache(maxsize=1024)(_facts)


def _check_transaction(connection: Connection, cursor: Any, facts: _StatementFacts) -> None:
    if facts.is_to_savepoint:
        _info(connection.connection).pop(_POISONED, None)
    # psycopg sends several statements at once if they have no parameters.
    if facts.may_be_several and postgres.has_lost_transaction(cursor) and not _autocommits(connection):
        raise RawTransactionError("a statement among several ended the transaction")

"""Transient errors: the database errors that are worth another try, recognised by their SQLSTATE.

asyncpg and SQLAlchemy wrap most of them as a plain ``DBAPIError``. So the code decides, and not the class
(PostgreSQL documentation, appendix A, "PostgreSQL Error Codes").
"""

from enum import Enum

from sqlalchemy.exc import DataError, DBAPIError

from db.errors import ConnectionEndedError, DatabaseUnreachableError, PoisonedTransactionError


class Transient(Enum):
    """A reason why the same work may succeed when it runs again in a new session."""

    CONFLICT = "two transactions met, and this one lost"
    LOST = "the connection is gone, or the server takes none right now"
    ENDED = "the server ended the connection for what the session itself did"
    READ_ONLY = "the server takes no writes: it may have just been demoted"
    STALE_PLAN = "the schema changed under a prepared statement"


_CONFLICTS = frozenset({"40001", "40P01", "55P03"})
# Beside class 08, which is the connection itself: the codes of a server that takes no connections for now.
_LOST = frozenset({"57P01", "57P02", "57P03", "57P05", "53300"})
_ENDED = frozenset({"25P03", "25P04"})  # a transaction that sat idle, or lasted, longer than allowed
_READ_ONLY = "25006"
# Too large; a NULL or a value that a constraint forbids; an error that a trigger raises.
_REFUSED = frozenset({"54000", "23502", "23514", "P0001"})
# Messages of asyncpg and psycopg without a code, where the driver was used directly.
# asyncpg cannot switch to another state where the server ended the connection between two of its messages.
_GONE = (
    "connection is closed",
    "connection was closed",
    "server closed the connection",
    "connection is lost",
    "cannot switch to state",
)
# SQLite's messages for a lock that another connection holds.
_SQLITE_BUSY = ("database is locked", "database table is locked")


def transient(error: BaseException) -> Transient | None:
    """The reason why `error` is worth another try in a new session, or None for a final error.

    An exception group is transient if all of its members are. A poisoned transaction is as transient as the swallowed
    error.
    """
    if isinstance(error, BaseExceptionGroup):
        reasons = [transient(member) for member in error.exceptions]
        if None in reasons:
            return None
        return Transient.ENDED if Transient.ENDED in reasons else reasons[0]
    if isinstance(error, PoisonedTransactionError) and error.__cause__ is not None:
        return transient(error.__cause__)
    if isinstance(error, ConnectionEndedError):
        return Transient.ENDED
    if isinstance(error, DatabaseUnreachableError):
        return Transient.LOST
    return _of_database(error)


def is_refused(error: BaseException) -> bool:
    """Whether the server refused values that it will never store.

    A text with a NUL, a text too long for an index, a value that a constraint or a trigger forbids.
    """
    code = sqlstate(error) or ""
    return isinstance(error, DataError) or code.startswith("22") or code in _REFUSED


def sqlstate(error: BaseException | None) -> str | None:
    """The five-character SQLSTATE that the server gave for `error` (a driver's or SQLAlchemy's), or None."""
    original = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(original, "sqlstate", None)
    return code if isinstance(code, str) else None


def _of_database(error: BaseException) -> Transient | None:
    # Not SQLAlchemy's errors alone: an error that arrives while a result is streamed is the driver's own.
    code = sqlstate(error)
    if code == _READ_ONLY:
        # The guards count a read-only server as a lost connection, and a read-only transaction not. A driver's error
        # alone does not tell the two apart.
        is_read_only_server = getattr(error, "connection_invalidated", True)
        return Transient.READ_ONLY if is_read_only_server else None
    if code in _ENDED:
        return Transient.ENDED
    if code in _CONFLICTS:
        return Transient.CONFLICT
    if getattr(error, "connection_invalidated", False) or (code or "") in _LOST or (code or "").startswith("08"):
        return Transient.LOST
    if _names(error, "InvalidCachedStatementError"):
        return Transient.STALE_PLAN
    if _names(error, "ConnectionDoesNotExistError", "ConnectionFailureError") or _is_gone(error):
        return Transient.LOST
    if isinstance(error, DBAPIError) and any(words in str(error.orig) for words in _SQLITE_BUSY):
        return Transient.CONFLICT
    return None


def _is_gone(error: BaseException) -> bool:
    is_driver_error = type(error).__module__.partition(".")[0] in ("asyncpg", "psycopg")
    return is_driver_error and any(words in str(error) for words in _GONE)


def _names(error: BaseException, *names: str) -> bool:
    """Whether the driver's own exception has one of these class names (asyncpg may not be installed)."""
    cause: BaseException | None = getattr(error, "orig", error)
    while cause is not None:
        if type(cause).__name__ in names:
            return True
        cause = cause.__cause__
    return False

"""Database sessions with an owner, which commits or rolls back and always closes them. Knows nothing of jobs.

::

    async with db.scope():
        session = await db.session()
        session.add(Order(id=7))
    # committed here; rolled back if the block raised

The function `db.session` and the package `db.session` share a name. `from db import session` gives the function, which
this module imports last. The package is reached by its modules, as in `from db.session.access import SessionAccess`.
"""

from db import siblings as _siblings  # noqa: F401 - refuses a worker package that is not Tandem's
from db.database import Database, default_database, set_default_database
from db.errors import (
    ConcurrentUseError,
    ConnectionEndedError,
    DatabaseUnreachableError,
    DatabaseURLError,
    DbError,
    NestedWriterError,
    NoScopeError,
    PartialCommitError,
    PoisonedTransactionError,
    PoolExhaustedError,
    RawTransactionError,
    ScopeEndedError,
    ScopeError,
    TransactionError,
    TransactionOpenError,
    UnownedSessionError,
    WrongLoopError,
    WrongThreadError,
)
from db.scope import scope
from db.session.classes import AsyncSession, Session
from db.sessions import (
    atomic,
    before_commit,
    close,
    commit,
    in_scope,
    independent,
    isolated,
    on_commit,
    rollback,
    session,
)
from db.text.log_records import keep_printable

__all__ = [
    "AsyncSession",
    "ConcurrentUseError",
    "ConnectionEndedError",
    "Database",
    "DatabaseURLError",
    "DatabaseUnreachableError",
    "DbError",
    "NestedWriterError",
    "NoScopeError",
    "PartialCommitError",
    "PoisonedTransactionError",
    "PoolExhaustedError",
    "RawTransactionError",
    "ScopeEndedError",
    "ScopeError",
    "Session",
    "TransactionError",
    "TransactionOpenError",
    "UnownedSessionError",
    "WrongLoopError",
    "WrongThreadError",
    "atomic",
    "before_commit",
    "close",
    "commit",
    "default_database",
    "in_scope",
    "independent",
    "isolated",
    "on_commit",
    "rollback",
    "scope",
    "session",
    "set_default_database",
]

keep_printable("db")

"""Sessions: who opens, commits, rolls back and closes them. Knows nothing of jobs.

::

    async with db.scope():
        session = await db.session()
        session.add(Order(id=7))
    # committed here; rolled back if the block raised
"""

from db import siblings as _siblings  # noqa: F401 - it refuses another worker than the one installed with this
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

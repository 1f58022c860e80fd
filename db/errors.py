"""The errors of ``db``. Each message says what happened, then what to do.

::

    DbError
    ├── DatabaseURLError (ValueError)        a URL is missing, malformed, or names an unusable database
    ├── DatabaseUnreachableError (ConnectionError)   the database is down, or has stopped answering
    ├── ConnectionEndedError (ConnectionError)       the server ended the connection for an act of the session
    ├── WrongLoopError                       an engine or scope was used on a second event loop
    ├── ScopeError
    │   ├── NoScopeError                     session() where no scope is open
    │   ├── ScopeEndedError                  a session was used after its scope had ended
    │   ├── ConcurrentUseError               two coroutines used one session at the same time
    │   ├── WrongThreadError                 an AsyncSession in a worker thread, or a Session's commit on the loop
    │   ├── NestedWriterError                a second SQLite writer inside a writing scope
    │   └── UnownedSessionError              a callback for a lent session that has no owner
    ├── TransactionError
    │   ├── TransactionOpenError (InvalidRequestError)   atomic(current="raise") found an open transaction
    │   ├── PoisonedTransactionError         a COMMIT that the server would have turned into a ROLLBACK
    │   ├── RawTransactionError              COMMIT, ROLLBACK or BEGIN without the transaction's owner
    │   └── PartialCommitError               one database committed, a later one failed
    └── PoolExhaustedError (sqlalchemy.exc.TimeoutError)   no connection became free in time

Errors of the database itself stay SQLAlchemy's own. :mod:`db.transient` tells which of them are worth another try.
"""

from collections.abc import Sequence

import sqlalchemy.exc


class DbError(Exception):
    """Base of every error that ``db`` raises itself."""


class DatabaseURLError(DbError, ValueError):
    """A database URL is missing, cannot be parsed, or names a database that cannot be used."""


class DatabaseUnreachableError(DbError, ConnectionError):
    """The database is down, refuses connections, or has stopped answering on an open one."""

    was_connected = False
    """Whether a connection was open before the database stopped answering."""


class ConnectionEndedError(DbError, ConnectionError):
    """The server has ended the connection for an act of the session, and would do so again."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the server has ended this session's connection: {why}; call 'await session.close()' or commit before "
            "you wait for anything else, or raise idle_in_transaction_timeout"
        )


class WrongLoopError(DbError):
    """An engine or a scope was used on another event loop than the one that opened it."""


class ScopeError(DbError):
    """Base of the errors about where and how a session is used."""


class NoScopeError(ScopeError):
    """``session()`` was called where no scope is open."""

    def __init__(self) -> None:
        super().__init__(
            "no scope is open here: wrap the call in 'async with db.scope():', add db.asgi.SessionMiddleware "
            "to the app, or open a session of its own with db.independent()"
        )


class ScopeEndedError(ScopeError):
    """A session, or ``session()``, was used after its scope had ended."""

    def __init__(self) -> None:
        super().__init__(
            "the scope of this session has ended, so nothing would commit this work: await every child task "
            "before the scope ends, or give the child its own with db.isolated()"
        )


class ConcurrentUseError(ScopeError):
    """Two coroutines, or two threads, used one session at the same time."""

    def __init__(self, what: str = "this session is already running a statement for another coroutine") -> None:
        super().__init__(
            f"{what}: one session is one conversation with the database; "
            "run concurrent queries with db.isolated(fn, *args)"
        )


class WrongThreadError(ScopeError):
    """An ``AsyncSession`` was used off its event loop's thread, or a ``Session`` was committed on it."""

    def __init__(
        self,
        reason: str = "an AsyncSession works only on its event loop's thread: in a worker thread use a Session "
        "(await db.session(db.default_database().sync)), or run the query before asyncio.to_thread",
    ) -> None:
        super().__init__(reason)


class NestedWriterError(ScopeError):
    """A new scope inside of one that holds SQLite's write lock, for which it would wait for ever."""

    def __init__(self) -> None:
        super().__init__(
            "the enclosing scope is already writing to this SQLite database, which takes one writer at a time: "
            "commit it first with 'await db.commit()', or use the same session"
        )


class TransactionError(DbError):
    """Base of the errors about the end of a transaction."""


class UnownedSessionError(ScopeError):
    """A callback or a job was registered for the COMMIT of a lent session that has no owner to run callbacks."""

    def __init__(self) -> None:
        super().__init__(
            "this scope uses a session that you made yourself, whose COMMIT runs no callbacks and publishes no jobs: "
            "lend a session of db.independent() or of another scope, or enqueue with using(session=session)"
        )


class TransactionOpenError(TransactionError, sqlalchemy.exc.InvalidRequestError):
    """``atomic(current="raise")`` found a transaction already open."""

    def __init__(self) -> None:
        super().__init__(
            "a transaction is already open: end it with db.commit() or db.rollback(), or choose "
            "atomic(current='commit' | 'rollback' | 'append' | 'join' | 'savepoint')"
        )


class PoisonedTransactionError(TransactionError):
    """The server has aborted the transaction, so its COMMIT would have been a silent ROLLBACK.

    Its ``__cause__`` is the error that was swallowed, where that is known.
    """

    def __init__(self) -> None:
        super().__init__(
            "an earlier statement failed and its error was swallowed, so this transaction is aborted "
            "and COMMIT would save nothing: let the error out, or try the statement inside "
            "'async with session.begin_nested():'"
        )


class RawTransactionError(TransactionError):
    """A transaction was, or would be, ended or begun without the scope that owns it."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}, behind the back of the scope that owns the transaction: "
            "use db.commit(), db.rollback(), db.atomic() or session.begin_nested()"
        )


class PartialCommitError(TransactionError):
    """A scope over several databases committed some of them before one failed.

    Attributes:
        committed: the names of the databases that have committed, in order.
        failed: the name of the database whose COMMIT failed. The error is ``__cause__``. Later ones were rolled back.
    """

    def __init__(self, committed: Sequence[str], failed: str) -> None:
        self.committed = tuple(committed)
        self.failed = failed
        super().__init__(
            f"{', '.join(committed)} committed, then {failed} failed: commits across databases are not atomic, "
            "so undo or repeat the committed part yourself"
        )


class PoolExhaustedError(DbError, sqlalchemy.exc.TimeoutError):
    """No pooled connection became free within the pool's timeout."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"no connection became free in time ({reason}): nested scopes and isolated() each hold a connection, so "
            "each unit of work with nested ones needs several; raise pool_size or close sooner"
        )

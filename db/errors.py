"""The errors of ``db``: one sentence each, and each says what to do next.

::

    DbError
    ├── DatabaseURLError (ValueError)        a URL is missing, wrong, or names what cannot work
    ├── DatabaseUnreachableError (ConnectionError)   no connection could be opened, or it stopped answering
    ├── ConnectionEndedError (ConnectionError)       the server ended it for what the session itself did
    ├── WrongLoopError                       an engine or scope was used on a second event loop
    ├── ScopeError
    │   ├── NoScopeError                     session() where no scope is open
    │   ├── ScopeEndedError                  a session was used after its scope had ended
    │   ├── ConcurrentUseError               two coroutines used one session at the same time
    │   ├── WrongThreadError                 an AsyncSession in a worker thread, or a Session's commit on the loop
    │   └── NestedWriterError                a second SQLite writer inside a writing scope
    ├── TransactionError
    │   ├── TransactionOpenError             atomic(current="raise") found an open transaction
    │   ├── PoisonedTransactionError         a COMMIT that the server would have turned into a ROLLBACK
    │   ├── RawTransactionError              COMMIT, ROLLBACK or BEGIN behind the owner's back
    │   └── PartialCommitError               one database committed, a later one failed
    └── PoolExhaustedError (sqlalchemy.exc.TimeoutError)   no connection became free in time

Errors of the database itself stay SQLAlchemy's own; :mod:`db.transient` tells which of them are worth another try.
"""

from collections.abc import Sequence

import sqlalchemy.exc


class DbError(Exception):
    """Base of every error that ``db`` raises by itself."""


class DatabaseURLError(DbError, ValueError):
    """A database URL is missing, cannot be parsed, or names a database that cannot serve sessions."""


class DatabaseUnreachableError(DbError, ConnectionError):
    """The database is down, refuses connections, or has stopped answering on an open one."""

    was_connected = False
    """Whether a connection was open, and has stopped answering."""


class ConnectionEndedError(DbError, ConnectionError):
    """The server has ended the connection for what the session itself did, and would do so again."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"the server has ended this session's connection: {why}; call 'await session.close()' or commit before "
            "waiting for something else, or raise idle_in_transaction_timeout"
        )


class WrongLoopError(DbError):
    """An engine or a scope belongs to the event loop that opened it and was used on another one."""


class ScopeError(DbError):
    """Base of the errors about where and how a session is used."""


class NoScopeError(ScopeError):
    """``session()`` was called where no scope is open."""

    def __init__(self) -> None:
        super().__init__(
            "no scope is open here: wrap the call in 'async with db.scope():', add db.asgi.SessionMiddleware "
            "to the app, or take a session of your own from db.independent()"
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
    """A new scope inside one that holds SQLite's write lock: it would wait for itself."""

    def __init__(self) -> None:
        super().__init__(
            "the enclosing scope is already writing to this SQLite database, which takes one writer at a time: "
            "commit it first with 'await db.commit()', or go on in the same session"
        )


class TransactionError(DbError):
    """Base of the errors about who may end a transaction, and how it ended."""


class UnownedSessionError(ScopeError):
    """A callback, or a job, was to go with the COMMIT of a lent session around which nobody runs callbacks."""

    def __init__(self) -> None:
        super().__init__(
            "this scope uses a session that you made yourself, and nobody runs callbacks around its COMMIT, "
            "or publishes its jobs: lend one of db.independent() or of another scope"
        )


class TransactionOpenError(TransactionError):
    """``atomic(current="raise")`` found a transaction already open."""

    def __init__(self) -> None:
        super().__init__(
            "a transaction is already open: end it with db.commit() or db.rollback(), or choose "
            "atomic(current='commit' | 'rollback' | 'append' | 'savepoint')"
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
    """Something would end or begin the transaction, or has ended it, behind the back of the scope that owns it."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}, behind the back of the scope that owns the transaction: "
            "use db.commit(), db.rollback(), db.atomic() or session.begin_nested()"
        )


class PartialCommitError(TransactionError):
    """A scope over several databases committed some of them before one failed.

    Attributes:
        committed: names of the databases that have committed, in order.
        failed: name of the database whose COMMIT failed; its error is ``__cause__``. Those after it were rolled back.
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
            "the pool needs more than one for every unit of work that nests; raise pool_size or close sooner"
        )

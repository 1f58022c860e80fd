"""``AsyncSession`` and ``Session``: SQLAlchemy's sessions, extended by an owner and by exclusive access.

1. Each method that talks to the database is one operation of the session's user (:mod:`db.session.access`).
2. ``commit()``, ``rollback()`` and ``close()`` go through the owner (a scope), which runs the callbacks around them.
"""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeAlias

import sqlalchemy.exc
import sqlalchemy.ext.asyncio as sa_async
import sqlalchemy.orm as sa_orm
from sqlalchemy import Connection, event

from db.aio.cancellation import shielded
from db.aio.threads import in_thread
from db.engine.sqlalchemy_version import OPERATIONS
from db.errors import PoisonedTransactionError
from db.session.access import LoopAccess, ThreadAccess
from db.session.callbacks import Callbacks
from db.session.owned_session import OwnedSession, TransactionOwner, copy_name
from db.session.transaction_blocks import OwnedBlock, Savepoint, Transaction

# The attributes of a SQLAlchemy session that its constructor sets from arguments.
_SETTINGS = (
    "autoflush",
    "bind",
    "binds",
    "_Session__binds",  # SQLAlchemy 2.0's name of `binds`
    "execution_options",
    "expire_on_commit",
    "join_transaction_mode",
    "twophase",
)

# Those of an AsyncSession itself: in SQLAlchemy 2.0, and in 2.1.
_ASYNC_SETTINGS = ("bind", "binds", "_async_bind", "_async_binds")

_Maker: TypeAlias = "sa_async.async_sessionmaker[Any] | sa_orm.sessionmaker[Any]"


class _LoopSession(OwnedSession):
    """The sync session inside an :class:`AsyncSession`."""

    access_class = LoopAccess
    access: LoopAccess


class Session(OwnedSession):
    """SQLAlchemy's `Session` over a synchronous driver, owned by a scope. Use it through `asyncio.to_thread`.

    ::

        @task
        def ship(session: Session, order_id: int) -> None:  # runs in a thread
            order = session.get_one(Order, order_id)
    """

    access_class = ThreadAccess
    access: ThreadAccess

    def commit(self) -> None:
        """Commit now, in this thread. In a scope, also run the callbacks registered so far, on the scope's event loop.

        Raises:
            WrongThreadError: this is the event loop's own thread, which the COMMIT would block.
        """
        self.access.check()
        if self.owner is None:
            commit_here(self)
        else:
            self.owner.commit_in_thread()

    def rollback(self) -> None:
        """Roll back now, in this thread. The session stays usable."""
        self.access.check()
        rollback_here(self)

    def close(self) -> None:
        """Roll back uncommitted work and release the connection. The next use takes a new one."""
        if not self.access.ended:
            with self.access.transaction_end():
                super().close()
            if self.owner is not None:
                self.owner.release_in_thread()

    def begin(self, nested: bool = False) -> sa_orm.SessionTransaction:
        """Begin a block that is committed at its end, or a savepoint. See SQLAlchemy."""
        transaction = super().begin(nested)
        block = Savepoint if nested else OwnedBlock if self.owner is not None else None
        return transaction if block is None else block(self, transaction)  # type: ignore[return-value]  # stands in


@event.listens_for(Session, "after_begin", propagate=True)
def _note_connection(session: Session, _transaction: sa_orm.SessionTransaction, connection: Connection) -> None:
    session.access.driver_connections.append(connection.connection.dbapi_connection)


@event.listens_for(Session, "after_transaction_end", propagate=True)
def _forget_connections(session: Session, transaction: sa_orm.SessionTransaction) -> None:
    if transaction.parent is None:
        session.access.driver_connections.clear()


class AsyncSession(sa_async.AsyncSession):
    """SQLAlchemy's `AsyncSession`, owned by a scope.

    ::

        @task
        async def ship(session: AsyncSession, order_id: int) -> None:
            order = await session.get_one(Order, order_id)
    """

    sync_session_class = _LoopSession
    sync_session: _LoopSession

    @property
    def access(self) -> LoopAccess:
        return self.sync_session.access

    @property
    def callbacks(self) -> Callbacks:
        return self.sync_session.callbacks

    @property
    def owner(self) -> TransactionOwner | None:
        return self.sync_session.owner

    @property
    def closes_at_once(self) -> bool:
        """Whether closing the session neither sends a statement nor waits.

        A session class of the user's own may do more in `close` than SQLAlchemy's does, so it never closes at once.
        """
        inner = self.sync_session
        is_plain = type(self) is AsyncSession and type(inner) is _LoopSession
        return is_plain and not inner.access.is_busy and not inner.in_transaction()

    async def commit(self) -> None:
        """Commit now. In a scope, also run the callbacks registered so far. The session stays usable."""
        self.access.check()
        await (self.owner.commit() if self.owner else shielded(send_commit(self)))

    async def rollback(self) -> None:
        """Roll back now. The session stays usable."""
        self.access.check()
        await (self.owner.rollback() if self.owner else shielded(send_rollback(self)))

    async def close(self) -> None:
        """Roll back uncommitted work and release the connection. The next use takes a new one."""
        if not self.access.ended:
            await (self.owner.close() if self.owner else shielded(send_close(self)))

    async def reset(self) -> None:
        """Close the session, as `close` does."""
        await self.close()

    async def invalidate(self) -> None:
        """Close the session, as `close` does, and discard its connection."""
        self.access.check()
        await shielded(discard(self))

    def begin(self) -> sa_async.AsyncSessionTransaction:
        return Transaction(self)

    def begin_nested(self) -> sa_async.AsyncSessionTransaction:
        return Transaction(self, nested=True)


def _as_operation(name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
    async def operation(self: AsyncSession, *args: Any, **kwargs: Any) -> Any:
        with self.access.operation():
            return await getattr(super(AsyncSession, self), name)(*args, **kwargs)

    copy_name(operation, sa_async.AsyncSession, name)
    return operation


# Set by name, so that the types stay SQLAlchemy's. Each of these methods is one operation, whether it talks to the
# database several times or not at all.
for _name in OPERATIONS:
    setattr(AsyncSession, _name, _as_operation(_name))


def adapt_sessionmaker(maker: _Maker) -> _Maker:
    """Make the session class of `maker` a subclass of ours, where it is SQLAlchemy's or a subclass of that."""
    if isinstance(maker, sa_async.async_sessionmaker):
        inner = maker.kw.get("sync_session_class") or maker.class_.sync_session_class
        maker.class_ = _mixed(AsyncSession, maker.class_)
        maker.kw["sync_session_class"] = (
            _mixed_maker(inner) if isinstance(inner, sa_orm.sessionmaker) else _mixed(_LoopSession, inner)
        )
    else:
        maker.class_ = _mixed(Session, maker.class_)
    return maker


def _mixed_maker(given: sa_orm.sessionmaker[Any]) -> sa_orm.sessionmaker[Any]:
    """A sessionmaker of ours, with the options and the event listeners of the given one."""
    made: sa_orm.sessionmaker[Any] = sa_orm.sessionmaker(class_=_mixed(_LoopSession, given.class_))
    made.kw = given.kw  # shared, as `given.configure` may change them later
    return made


def mixed_classes(outer: type, inner: type) -> tuple[type, type]:
    """Our subclasses of a session's class and of that of the sync session inside, which may be the same."""
    if issubclass(outer, sa_async.AsyncSession):
        return _mixed(AsyncSession, outer), _mixed(_LoopSession, inner)
    return _mixed(Session, outer), _mixed(Session, inner)


def _mixed(ours: type, given: type) -> type:
    if not isinstance(given, type):
        raise TypeError(f"a sessionmaker makes sessions of a class, and {given!r} is none")
    return given if issubclass(given, ours) else type(given.__name__, (ours, given), {})


def sync_session_of(session: AsyncSession | Session) -> OwnedSession:
    """The synchronous session inside `session`, or `session` itself."""
    return session.sync_session if isinstance(session, AsyncSession) else session


def joins_transaction(session: AsyncSession | Session) -> bool:
    """Whether the session joins a connection's transaction, as in tests. Its own COMMIT does not end that one."""
    return isinstance(sync_session_of(session).bind, Connection)


def only_connection(session: OwnedSession, statement: Any) -> Connection | None:
    """The connection whose COMMIT alone ends the session's transaction, if `statement` belongs on it. Else None."""
    transaction = session.get_transaction()
    if transaction is None or session.twophase or isinstance(session.bind, Connection):
        return None
    # SQLAlchemy has no public way to see them. Each connection is there twice, as itself and by its engine.
    connections = transaction._connections  # noqa: SLF001 - see above
    if len(connections) != 2:
        return None
    entry: Any = connections.get(session.get_bind(clause=statement))
    connection: Connection | None = None if entry is None else entry[0]
    return connection


def take_settings(session: AsyncSession | Session, fresh: AsyncSession | Session) -> None:
    """Make `session`, which is closed, talk to the engine of `fresh`, and behave like that new session."""
    mine, theirs = sync_session_of(session), sync_session_of(fresh)
    for name in _SETTINGS:
        if hasattr(theirs, name):
            setattr(mine, name, getattr(theirs, name))
    mine.info.update(theirs.info)
    if isinstance(session, AsyncSession):
        vars(session).update({name: value for name, value in vars(fresh).items() if name in _ASYNC_SETTINGS})
        vars(session).pop("_translate_binds", None)  # SQLAlchemy's cache of them


def flush(session: AsyncSession | Session) -> Awaitable[None]:
    """Send the pending changes of the session."""
    return session.flush() if isinstance(session, AsyncSession) else in_thread(session.flush)


async def send_commit(session: AsyncSession | Session) -> None:
    """Flush and COMMIT without asking the session's owner. For the owner alone.

    Raises:
        PoisonedTransactionError: the transaction was aborted before.
    """
    if isinstance(session, AsyncSession):
        with session.access.transaction_end():
            try:
                await super(AsyncSession, session).commit()
            except sqlalchemy.exc.PendingRollbackError as error:
                raise PoisonedTransactionError from error
    else:
        await _off_loop(session, commit_here)


async def send_rollback(session: AsyncSession | Session) -> None:
    """Roll back without asking the session's owner. For the owner alone."""
    if isinstance(session, AsyncSession):
        with session.access.transaction_end():
            await super(AsyncSession, session).rollback()
    else:
        await _off_loop(session, rollback_here)


async def send_close(session: AsyncSession | Session) -> None:
    """Release the connection without asking the session's owner. For the owner alone."""
    if isinstance(session, AsyncSession):
        if session.closes_at_once:
            session.sync_session.close()
            return
        with session.access.transaction_end():
            await super(AsyncSession, session).close()
    else:
        await _off_loop(session, _close_here)


async def discard(session: AsyncSession | Session) -> None:
    """Discard the connection in whatever state it is. For the owner alone."""
    if isinstance(session, AsyncSession):
        with session.access.transaction_end():
            await super(AsyncSession, session).invalidate()
    else:
        await _off_loop(session, _discard_here)


def commit_here(session: Session) -> None:
    """Commit as `send_commit` does, in this thread."""
    with session.access.transaction_end():
        try:
            super(Session, session).commit()
        except sqlalchemy.exc.PendingRollbackError as error:
            raise PoisonedTransactionError from error


def rollback_here(session: Session) -> None:
    """Roll back as `send_rollback` does, in this thread."""
    with session.access.transaction_end():
        super(Session, session).rollback()


def _close_here(session: Session) -> None:
    with session.access.transaction_end():
        super(Session, session).close()


def _discard_here(session: Session) -> None:
    with session.access.transaction_end():
        super(Session, session).invalidate()


async def _off_loop(session: Session, action: Callable[[Session], None]) -> None:
    if session.in_transaction():
        await in_thread(action, session)
    else:
        action(session)

"""``AsyncSession`` and ``Session``: SQLAlchemy's own, which know who owns their transaction and who is using them.

1. Whatever talks to the database is one operation of the session's user (:mod:`db.session.access`).
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
from db.errors import PoisonedTransactionError
from db.session.access import LoopAccess, ThreadAccess
from db.session.callbacks import Callbacks
from db.session.owned_session import OwnedSession, TransactionOwner, copy_name
from db.session.transaction_blocks import OwnedBlock, Savepoint, Transaction

_Maker: TypeAlias = "sa_async.async_sessionmaker[Any] | sa_orm.sessionmaker[Any]"


class _LoopSession(OwnedSession):
    """The sync session inside an :class:`AsyncSession`."""

    access: LoopAccess

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.access = LoopAccess()
        self.callbacks = Callbacks()
        super().__init__(*args, **kwargs)


class Session(OwnedSession):
    """SQLAlchemy's `Session` over a synchronous driver, owned by a scope; use it through `asyncio.to_thread`."""

    access: ThreadAccess

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.access = ThreadAccess()
        self.callbacks = Callbacks()
        super().__init__(*args, **kwargs)

    def commit(self) -> None:
        """Commit now, in this thread. In a scope: with the callbacks made so far, which run on the scope's event loop.

        Raises:
            WrongThreadError: this is the event loop's own thread, which the COMMIT would block.
        """
        self.access.check()
        if self.owner is None:
            commit_here(self)
        else:
            self.owner.commit_in_thread()

    def rollback(self) -> None:
        """Roll back now, in this thread; the same session then goes on."""
        self.access.check()
        rollback_here(self)

    def close(self) -> None:
        """Roll back what was not committed and give the connection back; the next use takes a new one."""
        if not self.access.ended:
            with self.access.transaction_end():
                super().close()

    def begin(self, nested: bool = False) -> sa_orm.SessionTransaction:
        """A block that is committed at its end, or a savepoint; see SQLAlchemy."""
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
    """SQLAlchemy's `AsyncSession`, owned by a scope."""

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
        """Whether closing it has nothing to send, and nobody to wait for.

        Users' own classes may do more in `close` than SQLAlchemy's.
        """
        inner = self.sync_session
        is_plain = type(self) is AsyncSession and type(inner) is _LoopSession
        return is_plain and not inner.access.is_busy and not inner.in_transaction()

    async def commit(self) -> None:
        """Commit now. In a scope: with the callbacks made so far; the same session then goes on."""
        self.access.check()
        await (self.owner.commit() if self.owner else shielded(send_commit(self)))

    async def rollback(self) -> None:
        """Roll back now; the same session then goes on."""
        self.access.check()
        await (self.owner.rollback() if self.owner else shielded(send_rollback(self)))

    async def close(self) -> None:
        """Roll back what was not committed and give the connection back; the next use takes a new one."""
        if not self.access.ended:
            await (self.owner.close() if self.owner else shielded(send_close(self)))

    async def reset(self) -> None:
        """As `close`."""
        await self.close()

    async def invalidate(self) -> None:
        """As `close`, but throw the connection away."""
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


# Set here, so that the types stay SQLAlchemy's. These talk to the database several times, or not at all where they find
# what they need, and are one operation all the same.
for _name in ("delete", "delete_all", "get", "get_one", "merge", "merge_all", "refresh", "run_sync"):
    setattr(AsyncSession, _name, _as_operation(_name))


def adapt_sessionmaker(maker: _Maker) -> _Maker:
    """`maker` with its session class made into one of ours, where it is SQLAlchemy's or a subclass of it."""
    if isinstance(maker, sa_async.async_sessionmaker):
        inner = maker.kw.get("sync_session_class") or maker.class_.sync_session_class
        maker.class_ = _mixed(AsyncSession, maker.class_)
        maker.kw["sync_session_class"] = _mixed(_LoopSession, inner)
    else:
        maker.class_ = _mixed(Session, maker.class_)
    return maker


def _mixed(ours: type, given: type) -> type:
    return given if issubclass(given, ours) else type(given.__name__, (ours, given), {})


def sync_session_of(session: AsyncSession | Session) -> OwnedSession:
    """The synchronous session that does the work."""
    return session.sync_session if isinstance(session, AsyncSession) else session


def joins_transaction(session: AsyncSession | Session) -> bool:
    """Whether it works in a transaction of somebody else's, which its own COMMIT does not end: a test's, say."""
    return isinstance(sync_session_of(session).bind, Connection)


def flush(session: AsyncSession | Session) -> Awaitable[None]:
    """Send what is pending."""
    return session.flush() if isinstance(session, AsyncSession) else in_thread(session.flush)


async def send_commit(session: AsyncSession | Session) -> None:
    """Flush and COMMIT, past the session's owner. For the owner alone.

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
    """ROLLBACK, past the session's owner. For the owner alone."""
    if isinstance(session, AsyncSession):
        with session.access.transaction_end():
            await super(AsyncSession, session).rollback()
    else:
        await _off_loop(session, rollback_here)


async def send_close(session: AsyncSession | Session) -> None:
    """Give the connection back, past the session's owner. For the owner alone."""
    if isinstance(session, AsyncSession):
        if session.closes_at_once:
            session.sync_session.close()
            return
        with session.access.transaction_end():
            await super(AsyncSession, session).close()
    else:
        await _off_loop(session, _close_here)


async def discard(session: AsyncSession | Session) -> None:
    """Throw the connection away, in whatever state it is. For the owner alone."""
    if isinstance(session, AsyncSession):
        with session.access.transaction_end():
            await super(AsyncSession, session).invalidate()
    else:
        await _off_loop(session, _discard_here)


def commit_here(session: Session) -> None:
    """`send_commit`, in this thread."""
    with session.access.transaction_end():
        try:
            super(Session, session).commit()
        except sqlalchemy.exc.PendingRollbackError as error:
            raise PoisonedTransactionError from error


def rollback_here(session: Session) -> None:
    """`send_rollback`, in this thread."""
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

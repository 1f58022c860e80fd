"""``OwnedSession``: the base of the sync session inside an ``AsyncSession``, and of ``Session``.

1. Each method that talks to the database is one operation of the session's user (:mod:`db.session.access`).
2. The session's owner alone commits. A COMMIT in any other way is refused.
"""

from collections.abc import Callable
from typing import Any, Protocol

import sqlalchemy.orm as sa_orm
from sqlalchemy import Connection, Engine, event

from db.errors import RawTransactionError
from db.session.access import LoopAccess, SessionAccess, ThreadAccess
from db.session.callbacks import Callbacks, follow_savepoints


class TransactionOwner(Protocol):
    """The object that ends the transactions of a session, and runs the callbacks around each end."""

    async def commit(self) -> None: ...
    async def rollback(self, *, cancel_running: bool = False) -> None: ...
    async def close(self) -> None: ...
    async def reopen(self) -> None: ...
    def reopen_here(self) -> None: ...
    def commit_in_thread(self) -> None: ...
    def release_in_thread(self) -> None: ...


class OwnedSession(sa_orm.Session):
    """A SQLAlchemy session that knows its owner, its callbacks and its current user."""

    access_class: type[LoopAccess] | type[ThreadAccess]
    access: SessionAccess
    callbacks: Callbacks
    owner: TransactionOwner | None = None
    place: Any = None
    """The scope, or the block of `independent()`, that the session is made for."""
    is_borrowed = False
    """Whether the session is one of SQLAlchemy's own, lent to a scope. Its COMMITs come without an owner."""
    is_released = False
    """Whether a close has released the engine. The next use takes the engine of then (:meth:`reopen_here`)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.access = self.access_class()
        self.callbacks = Callbacks()
        super().__init__(*args, **kwargs)

    @property
    def has_pending(self) -> bool:
        """Whether a flush would send a statement."""
        return not self._is_clean()  # the public `new` and `deleted` build a set of all their objects each time

    def get_bind(self, *args: Any, **kwargs: Any) -> Engine | Connection:
        # Every statement and every flush asks for its bind first, also inside an operation.
        self.access.check()
        if self.is_released and self.owner is not None:
            self.owner.reopen_here()
        return super().get_bind(*args, **kwargs)

    def add(self, instance: object, *, _warn: bool = True) -> None:
        # The event below comes after SQLAlchemy has begun a transaction, and not for an object that is in the session
        # already.
        self.access.check()
        # A flush in flight would miss an object that another coroutine adds.
        self.access.refuse_if_busy()
        super().add(instance, _warn=_warn)

    def rollback(self) -> None:
        try:
            super().rollback()
        finally:
            self.callbacks.drop()

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.callbacks.drop()

    def invalidate(self) -> None:
        super().invalidate()
        self.callbacks.drop()


follow_savepoints(OwnedSession)


@event.listens_for(OwnedSession, "before_attach", propagate=True, raw=True)
def _refuse_late_object(session: OwnedSession, _state: object) -> None:
    # Objects that come by a cascade are refused as well.
    session.access.check()


@event.listens_for(OwnedSession, "before_commit", propagate=True)
def _refuse_unowned_commit(session: OwnedSession) -> None:
    # Such a COMMIT would skip the callbacks, and could be cancelled half way.
    if session.owner is None or session.access.is_ending_transaction:
        return
    releases_savepoint = session.get_nested_transaction() is not None
    if not releases_savepoint:
        raise RawTransactionError("the transaction was committed inside run_sync(), or on the transaction's own object")


def _as_sync_operation(name: str) -> Callable[..., Any]:
    def operation(self: OwnedSession, *args: Any, **kwargs: Any) -> Any:
        with self.access.operation():
            return getattr(super(OwnedSession, self), name)(*args, **kwargs)

    copy_name(operation, sa_orm.Session, name)
    return operation


def copy_name(operation: Any, of: type, name: str) -> None:
    operation.__name__ = name
    operation.__qualname__ = f"{of.__name__}.{name}"
    operation.__doc__ = getattr(of, name).__doc__


# Set by name, so that the types stay SQLAlchemy's. Every way to the database ends in one of these methods, also that of
# an AsyncSession and that of a lazy load.
for _name in ("connection", "execute", "flush", "scalar", "scalars"):
    setattr(OwnedSession, _name, _as_sync_operation(_name))

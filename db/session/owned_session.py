"""The sync session inside an ``AsyncSession``, and a ``Session``: what both check before they talk to the database.

1. Whatever talks to the database is one operation of the session's user (:mod:`db.session.access`).
2. Nothing but the owner commits; a COMMIT in any other way is refused.
"""

from collections.abc import Callable
from typing import Any, Protocol

import sqlalchemy.orm as sa_orm
from sqlalchemy import Connection, Engine, event

from db.errors import RawTransactionError
from db.session.access import SessionAccess
from db.session.callbacks import Callbacks, follow_savepoints


class TransactionOwner(Protocol):
    """Who ends the transactions of a session."""

    async def commit(self) -> None: ...
    async def rollback(self, *, cancel_running: bool = False) -> None: ...
    async def close(self) -> None: ...
    def commit_in_thread(self) -> None: ...


class OwnedSession(sa_orm.Session):
    """What the sync session inside an AsyncSession and a Session of its own have in common."""

    access: SessionAccess
    callbacks: Callbacks
    owner: TransactionOwner | None = None

    @property
    def has_pending(self) -> bool:
        """Whether a flush would send anything."""
        return not self._is_clean()  # the public `new` and `deleted` make a set of all their objects each time

    def get_bind(self, *args: Any, **kwargs: Any) -> Engine | Connection:
        # Every statement and every flush asks for its bind first, those inside an operation, too.
        self.access.check()
        return super().get_bind(*args, **kwargs)

    def add(self, instance: object, *, _warn: bool = True) -> None:
        # The event below comes after SQLAlchemy has begun a transaction, and not for an object that it has already.
        self.access.check()
        # It would miss one that is added while another coroutine's flush is in flight.
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
    # Also those that come by a cascade.
    session.access.check()


@event.listens_for(OwnedSession, "before_commit", propagate=True)
def _refuse_unowned_commit(session: OwnedSession) -> None:
    # Nobody would run the callbacks around it, or protect it from cancellation.
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


# Set here, so that the types stay SQLAlchemy's. All that talks to the database comes down to these, in an AsyncSession
# and in lazy loads, too.
for _name in ("connection", "execute", "flush", "scalar", "scalars"):
    setattr(OwnedSession, _name, _as_sync_operation(_name))

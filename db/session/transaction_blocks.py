"""The blocks that ``session.begin()`` and ``begin_nested()`` return. The session's owner ends their transactions."""

from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

import sqlalchemy.ext.asyncio as sa_async
import sqlalchemy.orm as sa_orm

from db.aio.cancellation import shielded
from db.errors import ConcurrentUseError, PoisonedTransactionError
from db.session.owned_session import OwnedSession, TransactionOwner


class OwnedBlock:
    """``with session.begin():`` of an owned `Session`. The owner commits at its end."""

    def __init__(self, session: OwnedSession, transaction: sa_orm.SessionTransaction) -> None:
        self.session = session
        self._transaction = transaction
        self._earlier = session.callbacks.snapshot()

    def commit(self) -> None:
        self.session.commit()

    def rollback(self) -> None:
        self.session.rollback()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.session.rollback()
            self.session.callbacks.restore(self._earlier)
        elif self.session.get_transaction() is self._transaction:
            self.session.commit()


class Savepoint:
    """``with session.begin_nested():`` of a `Session`."""

    def __init__(self, session: OwnedSession, transaction: sa_orm.SessionTransaction) -> None:
        self.session = session
        self._transaction = transaction

    def commit(self) -> None:
        with self.session.access.operation():
            self._transaction.commit()

    def rollback(self) -> None:
        with self.session.access.operation():
            self._transaction.rollback()

    def __enter__(self) -> Self:
        self._transaction.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        lost = error is None and _is_lost(self._transaction, self.session)
        with self.session.access.operation():
            self._transaction.__exit__(kind, error, traceback)
        if lost:
            raise PoisonedTransactionError


class Transaction(sa_async.AsyncSessionTransaction):
    """``session.begin()`` and ``begin_nested()`` of an `AsyncSession`. The owner, if any, commits and rolls back."""

    @property
    def _sync_session(self) -> OwnedSession:
        return self.session.sync_session  # type: ignore[return-value]  # only our AsyncSession makes these

    @property
    def _owner(self) -> TransactionOwner | None:
        return None if self.nested else self._sync_session.owner

    async def start(self, is_ctxmanager: bool = False) -> "Transaction":
        self._earlier = self._sync_session.callbacks.snapshot()
        as_block = is_ctxmanager and self._owner is None
        with self._sync_session.access.operation():
            await super().start(is_ctxmanager=as_block)
        return self

    async def commit(self) -> None:
        if self.nested:
            with self._sync_session.access.operation():
                await super().commit()
        else:
            await self.session.commit()

    async def rollback(self) -> None:
        if self.nested:
            with self._sync_session.access.operation():
                await super().rollback()
        else:
            await self.session.rollback()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._owner is None:
            await self._exit(kind, error, traceback)
        elif error is not None:
            await self._owner.rollback(cancel_running=True)
            self._sync_session.callbacks.restore(self._earlier)
        elif self.sync_transaction is self._sync_session.get_transaction():
            await self._owner.commit()

    async def _exit(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        transaction = self._sync_transaction()
        lost = error is None and self.nested and _is_lost(transaction, self._sync_session)
        if error is not None:
            await self._sync_session.access.cancel_running(rolled_back_error())
        await shielded(self._as_transaction_end(super().__aexit__(kind, error, traceback)))
        if lost:
            raise PoisonedTransactionError

    async def _as_transaction_end(self, leaving: Coroutine[Any, Any, None]) -> None:
        with self._sync_session.access.transaction_end():
            await leaving


def rolled_back_error() -> ConcurrentUseError:
    """The error for a user whose statement was in flight when another user's error ended the transaction."""
    return ConcurrentUseError("another coroutine's error rolled this session back while a statement was in flight")


def _is_lost(savepoint: sa_orm.SessionTransaction, session: sa_orm.Session) -> bool:
    """Whether a failed flush has rolled this savepoint back. SQLAlchemy does not report that at the savepoint's end."""
    return session.get_nested_transaction() is savepoint and not savepoint.is_active

"""``Unit``: one session of a scope, from its first use to the scope's end."""

import asyncio
import inspect
import logging
from collections.abc import Coroutine
from typing import Any, Generic, Protocol

from typing_extensions import TypeVar

from db.aio.cancellation import shielded
from db.engine.leases import LeasedEngine
from db.errors import ScopeEndedError, WrongThreadError
from db.session.access import RELEASE_TIMEOUT
from db.session.callbacks import Callback, OnCommit
from db.session.classes import (
    AsyncSession,
    Session,
    commit_here,
    discard,
    flush,
    rollback_here,
    send_close,
    send_commit,
    send_rollback,
    sync_session_of,
)
from db.session.transaction_blocks import rolled_back_error

logger = logging.getLogger("db")


class SessionDatabase(Protocol):
    """The facts about a database that its sessions need: :class:`db.database.Database`."""

    name: str
    connect_timeout: float
    command_timeout: float

    def is_same_as(self, other: Any) -> bool: ...


D = TypeVar("D", bound=SessionDatabase, default=Any)


class ScopedSession(Generic[D]):
    """One session, and the lease on its engine. Without a lease it is somebody else's session, lent to the scope."""

    def __init__(self, database: D, session: AsyncSession | Session, lease: LeasedEngine | None) -> None:
        self.database = database
        self.session = session
        self.sync_session = sync_session_of(session)
        self.access = self.sync_session.access
        self.callbacks = self.sync_session.callbacks
        self.has_committed = False
        self.owned = lease is not None
        """Whether the scope made the session, and so ends it."""
        self._lease = lease
        self._loop = asyncio.get_running_loop()

    @property
    def _release_timeout(self) -> float:
        return min(RELEASE_TIMEOUT, self.database.connect_timeout)

    @property
    def has_begun(self) -> bool:
        """Whether there is something to commit: an open transaction, or callbacks, an enqueued job's perhaps."""
        return self.sync_session.in_transaction() or bool(self.callbacks)

    async def commit(self) -> None:
        """Commit early; the session then goes on in a new transaction.

        Until the COMMIT is sent a cancellation takes effect; from then on the truth is waited for.
        """
        self.access.refuse_if_busy()
        await self._prepare_commit()
        await shielded(self._commit())

    async def rollback(self, *, cancel_running: bool = False) -> None:
        """Roll back early; the session then goes on in a new transaction.

        Args:
            evicting: end what another coroutine has in flight, instead of raising `ConcurrentUseError`.
        """
        if not cancel_running:
            self.access.refuse_if_busy()
        await shielded(self._rollback())

    async def close(self) -> None:
        """Roll back what was not committed and give the connection back; the session takes a new one when next used."""
        self.access.refuse_if_busy()
        await shielded(self._close())

    async def prepare(self) -> None:
        """Everything that may still refuse the COMMIT: what is pending is sent, then the before-commit callbacks run.

        In this order, so that a callback's statement comes after those of the work that it is about.
        """
        if self.sync_session.has_pending:
            await flush(self.session)
        while entries := self.callbacks.take_before_commit():
            try:
                await run_before_commit(entries, self.session)
                if self.sync_session.has_pending:
                    await flush(self.session)
            except BaseException:
                self.callbacks.call_again(entries)
                raise
            self.callbacks.mark_called(entries, self.sync_session.get_nested_transaction())

    async def send_commit(self) -> bool:
        """COMMIT, if there is a transaction; tell whether there was. One that fails is rolled back."""
        if not self.sync_session.in_transaction():
            return False
        try:
            if isinstance(self.session, AsyncSession):
                await send_commit(self.session)
            else:
                await self._wait_for_commit(send_commit(self.session))
        except BaseException:
            await self._rollback()
            raise
        self.has_committed = True
        return True

    def commit_in_thread(self) -> None:
        """Commit a `Session` early in a worker thread: its callbacks run on the loop, the COMMIT here.

        Raises:
            WrongThreadError: this is the loop's own thread.
        """
        session = self.session
        assert isinstance(session, Session)  # noqa: S101 - an AsyncSession has no such method
        self._on_loop(self._prepare_commit())
        try:
            commit_here(session)
        except BaseException:
            rollback_here(session)
            raise
        self.has_committed = True
        self._on_loop(self._run_on_commit())

    async def end_shielded(self) -> None:
        """`end`, protected from cancellation."""
        await shielded(self.end())

    async def end(self) -> None:
        """It is over: roll back what is open, close, and let nobody use the session again."""
        self.access.ended = True
        try:
            if self.access.is_busy:
                await self.access.cancel_running(ScopeEndedError(), self._release_timeout)
            await self._close()
        finally:
            if self._lease is not None:
                await self._lease.release()

    async def _prepare_commit(self) -> None:
        await self.prepare()
        self.callbacks.begin_commit()

    async def _wait_for_commit(self, sent: Coroutine[Any, Any, None]) -> None:
        """Wait for a COMMIT's answer as long as the database may take: asyncpg has that limit of its own."""
        answer = asyncio.ensure_future(sent)
        await asyncio.wait({answer}, timeout=self.database.command_timeout)
        if not answer.done():
            await self.access.disconnect(self._release_timeout)
        await answer

    async def _commit(self) -> None:
        await self.send_commit()
        await self._run_on_commit()

    async def _run_on_commit(self) -> None:
        await run_on_commit(self.callbacks.take_on_commit())

    async def _rollback(self) -> None:
        self.callbacks.drop()
        await self.access.cancel_running(rolled_back_error(), self._release_timeout)
        try:
            async with asyncio.timeout(self._release_timeout):
                await send_rollback(self.session)
        except Exception as error:  # noqa: BLE001 - the transaction ends all the same, with its connection
            logger.warning(
                "rollback on %s failed (%s): its connection is thrown away",
                self.database.name,
                type(error).__name__,
            )
            await self._discard()

    async def _close(self) -> None:
        if self.sync_session.in_transaction():
            await self._rollback()
        self.callbacks.drop()  # whatever a class of the user's own does in its close
        await send_close(self.session)

    async def _discard(self) -> None:
        # A thread that is still waiting for the ROLLBACK's answer must let go first.
        await self.access.disconnect(self._release_timeout)
        try:
            await discard(self.session)
        except Exception:
            logger.exception("the connection to %s could not be thrown away", self.database.name)

    def _on_loop(self, coroutine: Coroutine[Any, Any, None]) -> None:
        if self._is_loop_thread():
            coroutine.close()
            raise WrongThreadError(
                "Session.commit() would block the event loop: call 'await asyncio.to_thread(session.commit)', "
                "or 'await db.commit(database)'"
            )
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _is_loop_thread(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False


async def run_before_commit(entries: list[Callback], session: AsyncSession | Session) -> None:
    """Ask one callback, or all the parts of one batch at once."""
    first = entries[0]
    if first.items is None:
        await first.callback(session)
    else:
        await first.callback(session, [item for entry in entries for item in entry.items or ()])


async def run_on_commit(callbacks: list[OnCommit]) -> None:
    """Tell everybody, whatever one of them says: the commit has happened, so their errors are not the caller's."""
    for callback in callbacks:
        try:
            told = callback()
            if inspect.isawaitable(told):
                await told
        except (Exception, asyncio.CancelledError, SystemExit, KeyboardInterrupt):
            logger.exception("an on_commit callback failed; the transaction is committed")

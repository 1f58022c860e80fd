"""``ScopedSession``: the owner of one session, from its first use to the scope's end."""

import asyncio
import inspect
import logging
from collections.abc import Coroutine, Mapping
from typing import Any, Generic, Protocol

from sqlalchemy.util.concurrency import await_only, in_greenlet
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
    joins_transaction,
    rollback_here,
    send_close,
    send_commit,
    send_rollback,
    sync_session_of,
    take_settings,
)
from db.session.transaction_blocks import rolled_back_error

logger = logging.getLogger("db")


class SessionDatabase(Protocol):
    """The facts about a database that its sessions need: :class:`db.database.Database`."""

    name: str
    connect_timeout: float
    command_timeout: float

    def is_same_as(self, other: Any) -> bool: ...
    @property
    def has_hook(self) -> bool: ...
    async def session_arguments(self) -> dict[str, Any]: ...
    def open_session(self, arguments: Mapping[str, Any]) -> tuple[Any, LeasedEngine]: ...


D = TypeVar("D", bound=SessionDatabase, default=Any)


class ScopedSession(Generic[D]):
    """One session and the lease on its engine. Without a lease the session is lent to the scope by its maker."""

    def __init__(self, database: D, session: AsyncSession | Session, lease: LeasedEngine | None) -> None:
        self.database = database
        self.session = session
        self.sync_session = sync_session_of(session)
        self.access = self.sync_session.access
        self.callbacks = self.sync_session.callbacks
        self.has_committed = False
        self.owned = lease is not None
        """Whether the scope made the session, and so ends its transactions."""
        self._lease = lease
        self._releasing: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def _release_timeout(self) -> float:
        return min(RELEASE_TIMEOUT, self.database.connect_timeout)

    @property
    def has_begun(self) -> bool:
        """Whether a commit has work: an open transaction, or callbacks, such as those of an enqueued job."""
        return self.sync_session.in_transaction() or bool(self.callbacks)

    async def commit(self) -> None:
        """Commit early. The session then goes on in a new transaction.

        A cancellation takes effect until the COMMIT is sent. From then on the COMMIT's answer is waited for.
        """
        self.access.refuse_if_busy()
        await self._prepare_commit()
        await shielded(self._commit())

    async def rollback(self, *, cancel_running: bool = False) -> None:
        """Roll back early. The session then goes on in a new transaction.

        Args:
            cancel_running: cancel another coroutine's operation in flight, instead of raising `ConcurrentUseError`.
        """
        if not cancel_running:
            self.access.refuse_if_busy()
        await shielded(self._rollback())

    async def close(self) -> None:
        """Roll back uncommitted work and release the connection. The next use takes one of the engine of then."""
        self.access.refuse_if_busy()
        await shielded(self._close_early())

    @property
    def is_released(self) -> bool:
        """Whether the session was closed early and not used since."""
        return self.sync_session.is_released

    async def reopen(self) -> None:
        """Make the session, after an early close, like a new one: ask the hook, and lease the engine of now.

        The object stays the same, as code may hold it, such as a task that got it as an argument.
        """
        if not self.owned:
            if self.sync_session.owner is not None:  # the session is lent: its maker is its owner
                await self.sync_session.owner.reopen()
            return
        arguments = await self.database.session_arguments()
        if not self.is_released:  # another task was here meanwhile
            return
        self.access.check()
        before = self._reopen(arguments)
        if before is not None:
            await before.release()

    def reopen_here(self) -> None:
        """Do as `reopen`, in the middle of a statement of the session's user.

        Raises:
            WrongThreadError: this is the event loop's own thread, which cannot wait for a hook.
        """
        if isinstance(self.session, Session):
            if not self._is_loop_thread():
                self._on_loop(self.reopen())
                return
        elif in_greenlet():
            await_only(self.reopen())
            return
        if self.database.has_hook:
            if isinstance(self.session, AsyncSession):
                return  # get_bind() was called: no statement is sent without a greenlet
            raise WrongThreadError(
                "the session was closed, and before_session cannot be called here: call 'await db.session(database)'"
            )
        before = self._reopen({})
        if before is not None:
            self._releasing = self._loop.create_task(before.release())

    def release_in_thread(self) -> None:
        """Release the engine of a `Session` that was closed in this thread."""
        if joins_transaction(self.session):
            return
        self.sync_session.is_released = True
        if not self._is_loop_thread():
            self._on_loop(self._release())

    async def prepare(self) -> None:
        """Take the steps that may still refuse the COMMIT: send pending changes, then run the before-commit callbacks.

        In this order, so that a callback's statement follows those of the work that it is about.
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
        """Commit the open transaction, if any, and return whether there was one. Roll back if the COMMIT fails."""
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
        """Commit a `Session` early in a worker thread. Its callbacks run on the event loop, the COMMIT in this thread.

        Raises:
            WrongThreadError: this is the event loop's own thread.
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
        """End the session as `end` does, shielded from cancellation."""
        await shielded(self.end())

    async def end(self) -> None:
        """Roll back the open transaction, close the session, and refuse every later use."""
        self.access.ended = True
        try:
            if self.access.is_busy:
                await self.access.cancel_running(ScopeEndedError(), self._release_timeout)
            await self._close()
        finally:
            await self._release()

    async def _prepare_commit(self) -> None:
        await self.prepare()
        self.callbacks.begin_commit()

    async def _wait_for_commit(self, sent: Coroutine[Any, Any, None]) -> None:
        """Wait for the answer to a COMMIT, within the command timeout. asyncpg has that limit of its own."""
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
        except Exception as error:  # noqa: BLE001 - discarding the connection ends the transaction as well
            logger.warning(
                "rollback on %s failed (%s): its connection is discarded",
                self.database.name,
                type(error).__name__,
            )
            await self._discard()

    async def _close(self) -> None:
        if self.sync_session.in_transaction():
            await self._rollback()
        self.callbacks.drop()  # also where a session class of the user's own fails in its close
        await send_close(self.session)

    async def _close_early(self) -> None:
        await self._close()
        # The transaction that a test's session joins is that session's own, so it must not get another engine.
        if self.owned and not joins_transaction(self.session):
            self.sync_session.is_released = True
            await self._release()

    async def _release(self) -> None:
        lease, self._lease = self._lease, None
        if lease is not None:
            await lease.release()

    def _reopen(self, arguments: Mapping[str, Any]) -> LeasedEngine | None:
        """Take the engine of now, and return the one that is still leased, if any."""
        fresh, lease = self.database.open_session(arguments)
        take_settings(self.session, fresh)
        self.sync_session.is_released = False
        before, self._lease = self._lease, lease
        return before

    async def _discard(self) -> None:
        # A thread that still waits for the ROLLBACK's answer must be freed first.
        await self.access.disconnect(self._release_timeout)
        try:
            await discard(self.session)
        except Exception:
            logger.exception("the connection to %s could not be discarded", self.database.name)

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
    """Call one before-commit callback, or one batch with all its items."""
    first = entries[0]
    if first.items is None:
        await first.function(session)
    else:
        await first.function(session, [item for entry in entries for item in entry.items or ()])


async def run_on_commit(callbacks: list[OnCommit]) -> None:
    """Run all on-commit callbacks. An error is logged and not raised, as the transaction is committed."""
    for callback in callbacks:
        try:
            told = callback()
            if inspect.isawaitable(told):
                await told
        except (Exception, asyncio.CancelledError, SystemExit, KeyboardInterrupt):
            logger.exception("an on_commit callback failed; the transaction is committed")

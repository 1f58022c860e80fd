"""Several transactions on one connection, each a savepoint. For `db.testing`.

The savepoints of a connection form a stack: RELEASE and ROLLBACK TO also end all savepoints that were set later. So

1. a transaction begins when no other is open, or on top of the transaction of an enclosing scope or session;
2. a scope or session goes on with its transaction when the transactions on top of it have ended;
3. a transaction that the server has aborted is rolled back when it ends, as no ROLLBACK of the whole will follow.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import dropwhile, takewhile
from threading import Lock
from typing import Any, Protocol
from weakref import WeakSet

from sqlalchemy import Connection, event

from db.engine import guards
from db.errors import DbError
from db.session.owned_session import OwnedSession

_WAIT_LIMIT = 3.0  # seconds


class InterleavedTransactionsError(DbError):
    """Two transactions that are not nested wait for each other on the one connection of a test."""

    def __init__(self) -> None:
        super().__init__(
            "in savepoints() transactions share one connection, and two that are not nested wait for each other: "
            "commit or close the open one before the other begins, or test this on committed data"
        )


class Place(Protocol):
    """The facts about a scope, or the block of an `independent()` session, that decide whose savepoint comes next."""

    @property
    def parent(self) -> "Place | None": ...
    @property
    def is_lent(self) -> bool: ...


@dataclass(frozen=True, eq=False, slots=True)
class _Savepoint:
    name: str
    place: Place | None


class SavepointStack:
    """The savepoints that `connection` sets from now on.

    Args:
        connection: one in an open transaction.
        innermost_place: gives the place where it is called, for statements that no session sends.
    """

    def __init__(self, connection: Connection, innermost_place: Callable[[], Place | None]) -> None:
        self._innermost_place = innermost_place
        self._sessions: WeakSet[OwnedSession] = WeakSet()
        self._sessions_lock = Lock()  # a thread may add one while another looks at them
        self._open: list[_Savepoint] = []
        self._changed = asyncio.Event()
        # Statements as well: SQLAlchemy's event for the beginning of a savepoint comes before there is a name, and the
        # events for its end come while the next one must still wait.
        event.listen(connection, "before_cursor_execute", self._before)
        event.listen(connection, "after_cursor_execute", self._after)
        event.listen(connection, "release_savepoint", self._release)
        event.listen(connection, "rollback_savepoint", self._roll_back)
        event.listen(OwnedSession, "after_transaction_create", self._note_session)

    def close(self) -> None:
        """Stop following the sessions of this process."""
        event.remove(OwnedSession, "after_transaction_create", self._note_session)

    def _note_session(self, session: OwnedSession, _transaction: Any) -> None:
        with self._sessions_lock:
            self._sessions.add(session)

    def _before(self, connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        match statement.split():
            case ["RELEASE" | "ROLLBACK", *_]:
                return  # it has waited for its turn at its own event
            case ["SAVEPOINT", name]:
                self._take_turn(connection)
                self._open.append(_Savepoint(name, self._owner()))
            case _:
                self._take_turn(connection)

    def _after(self, _connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        match statement.split():
            case ["RELEASE" | "ROLLBACK", *_, name]:
                self._open = list(takewhile(lambda savepoint: savepoint.name != name, self._open))
                self._changed.set()
                self._changed = asyncio.Event()

    def _release(self, connection: Connection, name: str, _context: Any) -> None:
        self._take_turn_to_end(connection, name)
        guards.refuse_poisoned_savepoint(connection, name)

    def _roll_back(self, connection: Connection, name: str, _context: Any) -> None:
        self._take_turn_to_end(connection, name)

    def _take_turn(self, connection: Connection) -> None:
        here = self._owner()
        self._wait(connection, lambda: self._is_turn_of(here))

    def _take_turn_to_end(self, connection: Connection, name: str) -> None:
        self._wait(connection, lambda: len({savepoint.place for savepoint in self._from(name)}) <= 1)
        if not self._from(name):
            raise InterleavedTransactionsError

    def _is_turn_of(self, place: Place | None) -> bool:
        return not self._open or _encloses(self._open[-1].place, place)

    def _from(self, name: str) -> list[_Savepoint]:
        """The savepoint of this name, and those on top of it."""
        return list(dropwhile(lambda savepoint: savepoint.name != name, self._open))

    def _owner(self) -> Place | None:
        """The place of the session that sends this statement, or the one here. A lent session is at its lender's."""
        with self._sessions_lock:
            sessions = [*self._sessions]
        for session in sessions:
            if session.place is not None and session.access.is_held_by_caller:
                place: Place = session.place
                return place
        here = self._innermost_place()
        while here is not None and here.is_lent:
            here = here.parent
        return here

    def _wait(self, connection: Connection, condition: Callable[[], bool]) -> None:
        if condition():
            return
        driver: Any = connection.connection.dbapi_connection
        if not hasattr(driver, "run_async"):  # a synchronous driver has no loop to wait on
            raise InterleavedTransactionsError
        driver.run_async(lambda _connection: self._until(condition))

    async def _until(self, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(_WAIT_LIMIT):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            raise InterleavedTransactionsError from None


def _encloses(outer: Place | None, place: Place | None) -> bool:
    """Whether `place` is `outer` or inside of it. None is outside of every scope and block."""
    while place is not None and place is not outer:
        place = place.parent
    return place is outer

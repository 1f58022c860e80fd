"""What to call around the next COMMIT of one session.

A callback belongs to the transaction or savepoint that was open when it was made: it goes with that one's rollback, and
passes to the enclosing one when a savepoint is released.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

BeforeCommit = Callable[[Any], Awaitable[None]]
"""Gets the session; refuses the commit by raising."""

OnCommit = Callable[[], Awaitable[None] | None]

T = TypeVar("T")
BeforeCommitBatch = Callable[[Any, list[T]], Awaitable[None]]
"""Gets the session and the items; refuses the commit by raising."""
OnCommitBatch = Callable[[list[T]], Awaitable[None] | None]

# The root transaction, begun or not.
_ROOT = None


@dataclass(slots=True, eq=False)
class Entry:
    """One callback, and the savepoint that it belongs to."""

    level: SessionTransaction | None
    callback: Callable[..., Any]
    items: list[Any] | None = None


class Callbacks:
    """The callbacks of one session, in the order in which they were made."""

    __slots__ = ("_before", "_on")

    def __init__(self) -> None:
        self._before: list[Entry] = []
        self._on: list[Entry] = []

    def add_before_commit(self, callback: BeforeCommit, savepoint: SessionTransaction | None) -> None:
        self._before.append(Entry(savepoint, callback))

    def add_before_commit_batch(
        self, callback: BeforeCommitBatch[T], items: list[T], savepoint: SessionTransaction | None
    ) -> None:
        """Call `callback` once, with the items of all who asked for it by then and were not rolled back."""
        self._before.append(Entry(savepoint, callback, items))

    def add_on_commit(self, callback: OnCommit, savepoint: SessionTransaction | None) -> None:
        self._on.append(Entry(savepoint, callback))

    def add_on_commit_batch(
        self, callback: OnCommitBatch[T], items: list[T], savepoint: SessionTransaction | None
    ) -> None:
        """Call `callback` once, with the items of all who asked for it and were committed."""
        self._on.append(Entry(savepoint, callback, items))

    @property
    def wants_session(self) -> bool:
        """Whether a before-commit callback is waiting, which has to be given a session."""
        return bool(self._before)

    def next_before_commit(self) -> list[Entry]:
        """Take the next one, also one that an earlier one has added; a batch is taken whole."""
        if not self._before:
            return []
        first = self._before[0]
        if first.items is None:
            return [self._before.pop(0)]
        batch = [entry for entry in self._before if entry.items is not None and entry.callback == first.callback]
        self._before[:] = [entry for entry in self._before if entry not in batch]
        return batch

    def ask_again(self, refused: list[Entry]) -> None:
        """Put back before-commit callbacks that have refused: the next COMMIT must ask them, too."""
        self._before[:0] = refused

    def take_on_commit(self) -> list[OnCommit]:
        due: list[OnCommit] = []
        batches: dict[Callable[..., Any], list[Any]] = {}
        for entry in self._on:
            if entry.items is None:
                due.append(entry.callback)
            elif entry.callback in batches:
                batches[entry.callback] += entry.items
            else:
                batches[entry.callback] = batch = list(entry.items)
                due.append(partial(entry.callback, batch))
        self._on.clear()
        return due

    def drop(self) -> None:
        """Forget all: the transaction was rolled back or closed."""
        self._before.clear()
        self._on.clear()

    def __bool__(self) -> bool:
        return bool(self._before or self._on)

    def _released(self, savepoint: SessionTransaction) -> None:
        for entry in (*self._before, *self._on):
            if entry.level is savepoint:
                entry.level = _enclosing_savepoint(savepoint)

    def _ended(self, savepoint: SessionTransaction) -> None:
        # What was released has passed to the enclosing one by now.
        for entries in (self._before, self._on):
            entries[:] = [entry for entry in entries if not _within(entry.level, savepoint)]


def follow(session_class: type[Session]) -> None:
    """Make the callbacks of `session_class` instances (their attribute `callbacks`) follow their savepoints."""

    @event.listens_for(session_class, "after_soft_rollback")
    def rolled_back(session: Any, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            session.callbacks.drop()

    @event.listens_for(session_class, "after_commit")
    def committed(session: Any) -> None:
        # SQLAlchemy tells of a released savepoint by the same event, while it is still the current one.
        savepoint = session.get_nested_transaction()
        if session.callbacks and savepoint is not None:
            session.callbacks._released(savepoint)  # noqa: SLF001 - the other half of this module

    @event.listens_for(session_class, "after_transaction_end")
    def ended(session: Any, transaction: SessionTransaction) -> None:
        if session.callbacks and transaction.nested:
            session.callbacks._ended(transaction)  # noqa: SLF001 - the other half of this module


def _within(level: SessionTransaction | None, transaction: SessionTransaction) -> bool:
    while level is not _ROOT:
        if level is transaction:
            return True
        level = level.parent
    return False


def _enclosing_savepoint(savepoint: SessionTransaction) -> SessionTransaction | None:
    enclosing = savepoint.parent
    while enclosing is not None and not enclosing.nested:
        enclosing = enclosing.parent
    return enclosing

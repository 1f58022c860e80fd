"""The callbacks around the next COMMIT of one session.

1. A callback belongs to the transaction or savepoint that was open when it was registered. It vanishes with the
   rollback of that transaction or savepoint. When a savepoint is released, its callbacks pass to the enclosing one.
2. A COMMIT runs the on-commit callbacks that were registered before it was sent. Those registered while it is in flight
   belong to the next COMMIT.
3. The writes of a before-commit callback may be rolled back with a savepoint. Then the callback is called again.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import event
from sqlalchemy.orm import Session, SessionTransaction

BeforeCommit = Callable[[Any], Awaitable[None]]
"""Gets the session. Refuses the commit by raising."""

OnCommit = Callable[[], Awaitable[None] | None]

T = TypeVar("T")
BeforeCommitBatch = Callable[[Any, list[T]], Awaitable[None]]
"""Gets the session and the items. Refuses the commit by raising."""
OnCommitBatch = Callable[[list[T]], Awaitable[None] | None]

# The root transaction, begun or not.
_ROOT = None


@dataclass(slots=True, eq=False)
class Callback:
    """One callback: a function, with the savepoint that it belongs to."""

    savepoint: SessionTransaction | None
    function: Callable[..., Any]
    items: list[Any] | None = None
    called_in: SessionTransaction | None = None
    """The savepoint that was open when the callback was called before a COMMIT."""
    is_committed: bool = False
    """Whether the callback's transaction was committed."""


class Callbacks:
    """The callbacks of one session, in the order of their registration."""

    __slots__ = ("_before", "_called", "_committing", "_on")

    def __init__(self) -> None:
        self._before: list[Callback] = []
        self._called: list[Callback] = []
        self._on: list[Callback] = []
        self._committing: list[Callback] = []

    def add_before_commit(self, callback: BeforeCommit, savepoint: SessionTransaction | None) -> None:
        self._before.append(Callback(savepoint, callback))

    def add_before_commit_batch(
        self, callback: BeforeCommitBatch[T], items: list[T], savepoint: SessionTransaction | None
    ) -> None:
        """Call `callback` once before the COMMIT, with the items of all registrations that were not rolled back."""
        self._before.append(Callback(savepoint, callback, items))

    def add_on_commit(self, callback: OnCommit, savepoint: SessionTransaction | None) -> None:
        self._on.append(Callback(savepoint, callback))

    def add_on_commit_batch(
        self, callback: OnCommitBatch[T], items: list[T], savepoint: SessionTransaction | None
    ) -> Callback:
        """Call `callback` once after the COMMIT, with the items of all registrations that were committed."""
        self._on.append(entry := Callback(savepoint, callback, items))
        return entry

    @property
    def needs_session(self) -> bool:
        """Whether a before-commit callback is waiting. It is called with a session."""
        return bool(self._before)

    def take_before_commit(self) -> list[Callback]:
        """Take the next callback, also one that an earlier callback has registered. A batch is taken whole."""
        if not self._before:
            return []
        first = self._before[0]
        if first.items is None:
            return [self._before.pop(0)]
        return _take_out(self._before, lambda entry: entry.items is not None and entry.function == first.function)

    def call_again(self, refused: list[Callback]) -> None:
        """Put back before-commit callbacks that refused, so that the next COMMIT calls them again."""
        self._before[:0] = refused

    def mark_called(self, entries: list[Callback], savepoint: SessionTransaction | None) -> None:
        """Note that these callbacks were called while `savepoint` was the innermost one."""
        for entry in entries:
            entry.called_in = savepoint
        self._called += entries

    def begin_commit(self) -> None:
        """Assign the callbacks so far to the COMMIT that is sent now. Later ones belong to the next COMMIT."""
        if self._on:
            self._committing += self._on
            self._on.clear()

    def take_on_commit(self) -> list[OnCommit]:
        """Take the on-commit callbacks of the COMMIT that has just succeeded."""
        due: list[OnCommit] = []
        if not (self._called or self._committing):
            return due
        batches: dict[Callable[..., Any], list[Any]] = {}
        for entry in (*self._called, *self._committing):
            entry.is_committed = True
        for entry in self._committing:
            if entry.items is None:
                due.append(entry.function)
                continue
            # A job's handle keeps the entry, to see whether it is committed, and does not need the items.
            items, entry.items = entry.items, []
            if entry.function in batches:
                batches[entry.function] += items
            else:
                batches[entry.function] = batch = list(items)
                due.append(partial(entry.function, batch))
        self._committing.clear()
        self._called.clear()
        return due

    def drop(self) -> None:
        """Drop all callbacks, as the transaction was rolled back or closed."""
        if self:
            for entries in self._all:
                entries.clear()

    def take_batches_of(self, other: "Callbacks") -> None:
        """Take the batch callbacks of `other`. They work with the session of any driver."""
        for mine, theirs in zip(self._all, other._all, strict=True):  # noqa: SLF001 - of the same class
            mine.extend(_take_out(theirs, lambda entry: entry.items is not None))

    def snapshot(self) -> "Callbacks":
        """A copy of the current callbacks."""
        copy = Callbacks()
        copy._before[:] = [*self._called, *self._before]
        copy._on[:] = [*self._committing, *self._on]
        return copy

    def restore(self, snapshot: "Callbacks") -> None:
        """Put back the callbacks of `snapshot` that were not committed since."""
        self._before[:0] = [entry for entry in snapshot._before if not entry.is_committed]  # noqa: SLF001 - of the same class
        self._on[:0] = [entry for entry in snapshot._on if not entry.is_committed]  # noqa: SLF001 - likewise

    def __bool__(self) -> bool:
        return bool(self._before or self._called or self._on or self._committing)

    @property
    def _all(self) -> tuple[list[Callback], ...]:
        return self._before, self._called, self._on, self._committing

    def _released(self, savepoint: SessionTransaction) -> None:
        enclosing = _enclosing_savepoint(savepoint)
        for entries in self._all:
            for entry in entries:
                if entry.savepoint is savepoint:
                    entry.savepoint = enclosing
                if entry.called_in is savepoint:
                    entry.called_in = enclosing

    def _ended(self, savepoint: SessionTransaction) -> None:
        # The callbacks of a released savepoint have passed to the enclosing one by now.
        for entries in self._all:
            _take_out(entries, lambda entry: _is_within(entry.savepoint, savepoint))
        self.call_again(_take_out(self._called, lambda entry: _is_within(entry.called_in, savepoint)))


def follow_savepoints(session_class: type[Session]) -> None:
    """Let the callbacks of each `session_class` instance (its attribute `callbacks`) follow its savepoints."""

    @event.listens_for(session_class, "after_soft_rollback")
    def rolled_back(session: Any, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            session.callbacks.drop()

    @event.listens_for(session_class, "after_commit")
    def committed(session: Any) -> None:
        # SQLAlchemy sends the same event for a released savepoint, while that is still the current one.
        if session.callbacks and (savepoint := session.get_nested_transaction()) is not None:
            session.callbacks._released(savepoint)  # noqa: SLF001 - the other half of this module

    @event.listens_for(session_class, "after_transaction_end")
    def ended(session: Any, transaction: SessionTransaction) -> None:
        if transaction.nested and session.callbacks:
            session.callbacks._ended(transaction)  # noqa: SLF001 - the other half of this module


def call_at_each_begin(session: Any, register: Callable[[Callbacks], None]) -> None:
    """Call `register` with the session's callbacks each time that it begins a transaction. A savepoint is none."""

    @event.listens_for(session, "after_transaction_create")
    def begun(session: Any, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            register(session.callbacks)


def _take_out(entries: list[Callback], wanted: Callable[[Callback], bool]) -> list[Callback]:
    """Remove the wanted entries from `entries`, and return them."""
    taken, left = list[Callback](), list[Callback]()
    for entry in entries:
        (taken if wanted(entry) else left).append(entry)
    entries[:] = left
    return taken


def _is_within(savepoint: SessionTransaction | None, transaction: SessionTransaction) -> bool:
    while savepoint is not _ROOT:
        if savepoint is transaction:
            return True
        savepoint = savepoint.parent
    return False


def _enclosing_savepoint(savepoint: SessionTransaction) -> SessionTransaction | None:
    enclosing = savepoint.parent
    while enclosing is not None and not enclosing.nested:
        enclosing = enclosing.parent
    return enclosing

"""What to call around the next COMMIT of one session.

1. A callback belongs to the transaction or savepoint that was open when it was made: it goes with that one's rollback,
   and passes to the enclosing one when a savepoint is released.
2. A COMMIT tells those that were made before it was sent. Those made while it is in flight belong to the next one.
3. What a before-commit callback has written in a savepoint may be rolled back with that: then it is asked again.
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
    asked_in: SessionTransaction | None = None
    """The savepoint that was open when it was called before a COMMIT."""
    is_over: bool = False
    """Whether its transaction was committed."""


class Callbacks:
    """The callbacks of one session, in the order in which they were made."""

    __slots__ = ("_asked", "_before", "_on", "_sealed")

    def __init__(self) -> None:
        self._before: list[Entry] = []
        self._asked: list[Entry] = []
        self._on: list[Entry] = []
        self._sealed: list[Entry] = []

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
    ) -> Entry:
        """Call `callback` once, with the items of all who asked for it and were committed."""
        self._on.append(entry := Entry(savepoint, callback, items))
        return entry

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
        return _taken(self._before, lambda entry: entry.items is not None and entry.callback == first.callback)

    def ask_again(self, refused: list[Entry]) -> None:
        """Put back before-commit callbacks that have refused: the next COMMIT must ask them, too."""
        self._before[:0] = refused

    def asked(self, entries: list[Entry], savepoint: SessionTransaction | None) -> None:
        """They were called, while `savepoint` was the innermost one."""
        for entry in entries:
            entry.asked_in = savepoint
        self._asked += entries

    def seal(self) -> None:
        """The COMMIT is about to be sent: what is made from now on belongs to the next one."""
        if self._on:
            self._sealed += self._on
            self._on.clear()

    def take_on_commit(self) -> list[OnCommit]:
        """What is to be told of the COMMIT, which has happened."""
        due: list[OnCommit] = []
        if not (self._asked or self._sealed):
            return due
        batches: dict[Callable[..., Any], list[Any]] = {}
        for entry in (*self._asked, *self._sealed):
            entry.is_over = True
        for entry in self._sealed:
            if entry.items is None:
                due.append(entry.callback)
                continue
            # A job's handle keeps the entry, to see whether it is over, and does not need the items.
            items, entry.items = entry.items, []
            if entry.callback in batches:
                batches[entry.callback] += items
            else:
                batches[entry.callback] = batch = list(items)
                due.append(partial(entry.callback, batch))
        self._sealed.clear()
        self._asked.clear()
        return due

    def drop(self) -> None:
        """Forget all: the transaction was rolled back or closed."""
        if self:
            for entries in self._all:
                entries.clear()

    def adopt_batches(self, other: "Callbacks") -> None:
        """Take those of `other` that are asked for together: they do not care which driver's session they get."""
        for mine, theirs in zip(self._all, other._all, strict=True):  # noqa: SLF001 - its own kind
            mine.extend(_taken(theirs, lambda entry: entry.items is not None))

    def kept(self) -> "Callbacks":
        """A copy: what there is now."""
        copy = Callbacks()
        copy._before[:] = [*self._asked, *self._before]
        copy._on[:] = [*self._sealed, *self._on]
        return copy

    def give_back(self, kept: "Callbacks") -> None:
        """Of what there was, ask and tell again what was not committed since."""
        self._before[:0] = [entry for entry in kept._before if not entry.is_over]  # noqa: SLF001 - its own kind
        self._on[:0] = [entry for entry in kept._on if not entry.is_over]  # noqa: SLF001 - likewise

    def __bool__(self) -> bool:
        return bool(self._before or self._asked or self._on or self._sealed)

    @property
    def _all(self) -> tuple[list[Entry], ...]:
        return self._before, self._asked, self._on, self._sealed

    def _released(self, savepoint: SessionTransaction) -> None:
        enclosing = _enclosing_savepoint(savepoint)
        for entries in self._all:
            for entry in entries:
                if entry.level is savepoint:
                    entry.level = enclosing
                if entry.asked_in is savepoint:
                    entry.asked_in = enclosing

    def _ended(self, savepoint: SessionTransaction) -> None:
        # What was released has passed to the enclosing one by now.
        for entries in self._all:
            _taken(entries, lambda entry: _within(entry.level, savepoint))
        self.ask_again(_taken(self._asked, lambda entry: _within(entry.asked_in, savepoint)))


def follow(session_class: type[Session]) -> None:
    """Make the callbacks of `session_class` instances (their attribute `callbacks`) follow their savepoints."""

    @event.listens_for(session_class, "after_soft_rollback")
    def rolled_back(session: Any, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            session.callbacks.drop()

    @event.listens_for(session_class, "after_commit")
    def committed(session: Any) -> None:
        # SQLAlchemy tells of a released savepoint by the same event, while it is still the current one.
        if session.callbacks and (savepoint := session.get_nested_transaction()) is not None:
            session.callbacks._released(savepoint)  # noqa: SLF001 - the other half of this module

    @event.listens_for(session_class, "after_transaction_end")
    def ended(session: Any, transaction: SessionTransaction) -> None:
        if transaction.nested and session.callbacks:
            session.callbacks._ended(transaction)  # noqa: SLF001 - the other half of this module


def _taken(entries: list[Entry], wanted: Callable[[Entry], bool]) -> list[Entry]:
    """Those of `entries` that are wanted; they leave it."""
    taken, left = list[Entry](), list[Entry]()
    for entry in entries:
        (taken if wanted(entry) else left).append(entry)
    entries[:] = left
    return taken


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

"""Callbacks that a scope registers before the session of their database is opened."""

from db.session.callbacks import Callbacks, OnCommit
from db.session.owned_session import OwnedSession
from db.session.owner import D


class WaitingCallbacks(dict[D, Callbacks]):
    """Callbacks by the database whose session they wait for.

    Hardly any scope has some, so a scope checks for an empty dict first. `only` is a database, or None for all.
    """

    __slots__ = ()

    def of(self, database: D) -> Callbacks:
        """The callbacks that wait for a session of `database`."""
        return self.setdefault(database, Callbacks())

    def needing_session(self, only: D | None) -> list[D]:
        """The databases whose session must be opened for a before-commit callback."""
        return [each for each in self._chosen(only) if self[each].needs_session]

    def move_to(self, database: D, session: OwnedSession) -> None:
        """Move the callbacks of `database` to its session."""
        session.callbacks = self.pop(database, session.callbacks)
        for other, callbacks in self.items():
            if other.is_same_as(database):
                session.callbacks.take_batches_of(callbacks)

    def begin_commit(self, only: D | None) -> None:
        """Assign the callbacks so far to the COMMIT that is sent now. Later ones belong to the next COMMIT."""
        for each in self._chosen(only):
            self[each].begin_commit()

    def take_on_commit(self, only: D | None) -> list[OnCommit]:
        """Take the on-commit callbacks of the COMMIT that has just succeeded."""
        return [callback for each in self._chosen(only) for callback in self[each].take_on_commit()]

    def drop(self, only: D | None) -> None:
        """Drop the callbacks, as their transaction was rolled back."""
        for each in self._chosen(only):
            del self[each]

    def _chosen(self, only: D | None) -> list[D]:
        return list(self) if only is None else [each for each in self if each is only]

"""Callbacks made in a scope before there is a session to run them around."""

from db.session.callbacks import Callbacks, OnCommit
from db.session.owned_session import OwnedSession
from db.session.owner import D


class WaitingCallbacks(dict[D, Callbacks]):
    """By the database whose session they wait for. Hardly ever are there any, so a scope asks that first.

    `only` is a database, or None for all.
    """

    __slots__ = ()

    def of(self, database: D) -> Callbacks:
        """The ones that wait for a session of `database`, to add to them."""
        return self.setdefault(database, Callbacks())

    def needing_session(self, only: D | None) -> list[D]:
        """Where a session has to be opened, as a before-commit callback is given one."""
        return [each for each in self._chosen(only) if self[each].needs_session]

    def move_to(self, database: D, session: OwnedSession) -> None:
        """Hand them over to the session that they waited for."""
        session.callbacks = self.pop(database, session.callbacks)
        for other, callbacks in self.items():
            if other.is_same_as(database):
                session.callbacks.take_batches_of(callbacks)

    def begin_commit(self, only: D | None) -> None:
        """The COMMIT is about to be sent: what is made from now on belongs to the next one."""
        for each in self._chosen(only):
            self[each].begin_commit()

    def take_on_commit(self, only: D | None) -> list[OnCommit]:
        """What is to be told of the COMMIT, which has happened."""
        return [callback for each in self._chosen(only) for callback in self[each].take_on_commit()]

    def drop(self, only: D | None) -> None:
        """Forget them: what they belong to was rolled back."""
        for each in self._chosen(only):
            del self[each]

    def _chosen(self, only: D | None) -> list[D]:
        return list(self) if only is None else [each for each in self if each is only]

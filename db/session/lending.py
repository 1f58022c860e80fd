"""Lend a session of SQLAlchemy's own to a scope: it is one of ours for as long as it is lent."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import sqlalchemy.ext.asyncio as sa_async
import sqlalchemy.orm as sa_orm

from db.session.callbacks import Callbacks
from db.session.classes import AsyncSession, Session, mixed_classes

LentSession: TypeAlias = (
    sa_async.AsyncSession | sa_async.async_scoped_session[Any] | sa_orm.Session | sa_orm.scoped_session[Any]
)

_OURS = "_tandem_classes"
_LENT = "_tandem_lent"


def checked(session: object) -> sa_async.AsyncSession | sa_orm.Session:
    """The session itself, or the one that a scoped session stands for here.

    Raises:
        TypeError: `session` is neither.
    """
    if isinstance(session, sa_async.async_scoped_session | sa_orm.scoped_session):
        session = session()
    if not isinstance(session, sa_async.AsyncSession | sa_orm.Session):
        raise TypeError(f"scope(session=...) takes a session of SQLAlchemy's or of db's, not {type(session).__name__}")
    return session


@contextmanager
def as_ours(session: Any) -> Iterator[AsyncSession | Session]:
    """A block in which `session` is one of ours. The object stays the same, as its lender holds it."""
    inner: Any = session.sync_session if isinstance(session, sa_async.AsyncSession) else session
    lent: _Lent | None = vars(inner).get(_LENT)
    if lent is None and isinstance(session, AsyncSession | Session):
        yield session
        return
    if lent is None:
        lent = vars(inner)[_LENT] = _Lent(session, inner)
    lent.scopes += 1
    try:
        yield session
    finally:
        lent.scopes -= 1
        if lent.scopes == 0:
            lent.give_back(session, inner)


class _Lent:
    """A session that is one of ours until the last of its scopes has ended. They may overlap."""

    def __init__(self, session: Any, inner: Any) -> None:
        self.scopes = 0
        # Listeners of the lender's are kept with the dispatch of the session's own class, which is made now if ever.
        _ = inner.dispatch
        self._classes = type(session), type(inner)
        session.__class__, inner.__class__ = _our_classes(*self._classes)
        inner.access, inner.callbacks, inner.is_borrowed = inner.access_class(), Callbacks(), True

    def give_back(self, session: Any, inner: Any) -> None:
        """Make it what it was."""
        session.__class__, inner.__class__ = self._classes
        del inner.access, inner.callbacks, inner.is_borrowed, vars(inner)[_LENT]


def _our_classes(outer: type, inner: type) -> tuple[type, type]:
    # Kept at the class: a sessionmaker makes a class of its own, which a table of ours would keep alive.
    kept: dict[type, tuple[type, type]] = vars(outer).get(_OURS) or {}
    if inner not in kept:
        kept[inner] = mixed_classes(outer, inner)
        setattr(outer, _OURS, kept)
    return kept[inner]

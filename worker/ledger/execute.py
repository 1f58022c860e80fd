"""Running a statement in a session, whichever of the two kinds it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Dialect, Engine, Executable

from db import AsyncSession, Session
from db.aio.threads import in_thread
from db.session.classes import sync_session_of
from db.session.owned_session import OwnedSession

_TRANSLATION = "schema_translate_map"  # SQLAlchemy's name for it

T = TypeVar("T")

AnySession = AsyncSession | Session


async def execute(session: AnySession, statement: Executable, parameters: Any = None) -> Any:
    """Run it; its result. A sequence of parameters is many rows.

    Whatever schema the session works in, a tenant's perhaps, the ledger is where its other statements find it.
    """
    if isinstance(session, AsyncSession):
        return await session.execute(statement, parameters, execution_options=_options(session, statement))
    return await in_thread(execute_here, session, statement, parameters)


def execute_here(session: OwnedSession, statement: Executable, parameters: Any = None) -> Any:
    """`execute`, where a synchronous session may talk to the database."""
    return session.execute(statement, parameters, execution_options=_options(session, statement))


def _options(session: AnySession | OwnedSession, statement: Executable) -> dict[str, Any]:
    clause: Any = statement  # which some sessions want to see, to know where it goes
    return {_TRANSLATION: _translation(session.get_bind(clause=clause))}


def _translation(bind: Engine | Connection) -> Mapping[str | None, str | None]:
    """The schemas that an engine translates for all its sessions."""
    return bind.engine.get_execution_options().get(_TRANSLATION) or {}


async def run(session: AnySession, act: Callable[[OwnedSession], T]) -> T:
    """Call `act`, as one operation, with the synchronous session: there it may talk to the database."""
    inner = sync_session_of(session)
    if isinstance(session, AsyncSession):
        return await session.run_sync(lambda _: act(inner))
    return await in_thread(_alone, inner, act)


def _alone(session: OwnedSession, act: Callable[[OwnedSession], T]) -> T:
    with session.access.operation():
        return act(session)


@dataclass(frozen=True, slots=True)
class DriverStatement:
    """A statement in the words of one driver.

    SQLAlchemy's own way from a statement to its words makes one that runs in every job twice as dear. Values reach the
    driver as they are, tables keep their schema, and nobody who listens to statements hears of it: this is for types
    that need no conversion, and for where there is neither a translation nor a listener.
    """

    words: str
    order: tuple[str, ...] | None
    """Of the parameters; None where the driver takes them by name."""
    constants: Mapping[str, Any]
    """Parameters that are the same each time."""
    options: Mapping[str, Any]

    @classmethod
    def of(cls, statement: Executable, dialect: Dialect) -> Self:
        compiled: Any = statement.compile(dialect=dialect)  # type: ignore[attr-defined]  # all but the protocol have it
        order = None if compiled.positiontup is None else tuple(compiled.positiontup)
        return cls(compiled.string, order, compiled.params, compiled.execution_options)

    @staticmethod
    def does_the_same(session: OwnedSession, connection: Connection) -> bool:
        """Whether it does there what the statement itself does."""
        return not (_translation(connection) or session.dispatch.do_orm_execute or _is_listened_to(connection))

    def write(self, connection: Connection, values: Mapping[str, Any]) -> int:
        """Run it; how many rows it wrote."""
        given = {**self.constants, **values}
        parameters = given if self.order is None else tuple(map(given.__getitem__, self.order))
        return connection.exec_driver_sql(self.words, parameters, self.options).rowcount


def _is_listened_to(connection: Connection) -> bool:
    """Whether somebody hears of the statements on it."""
    # What SQLAlchemy asks itself before each event. To ask for the listeners makes lists of them, for each connection.
    if not (getattr(connection, "_has_events", True) or getattr(connection.engine, "_has_events", True)):
        return False
    return any((connection.dispatch.before_execute, connection.dispatch.after_execute))

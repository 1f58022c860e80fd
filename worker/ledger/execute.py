"""Running a statement in an asynchronous or a synchronous session."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Dialect, Engine, Executable

from db import AsyncSession, Session
from db.aio.threads import in_thread
from db.engine.closing import closes, has_listeners
from db.session.classes import sync_session_of
from db.session.owned_session import OwnedSession

_TRANSLATION = "schema_translate_map"  # SQLAlchemy's option

T = TypeVar("T")

AnySession = AsyncSession | Session


async def execute(session: AnySession, statement: Executable, parameters: Any = None) -> Any:
    """Run a statement, and return its result. A sequence of parameters runs it for many rows.

    The session may translate schemas, for a tenant perhaps. The ledger's table is found by the engine's translation
    alone.
    """
    if isinstance(session, AsyncSession):
        return await session.execute(statement, parameters, execution_options=_options(session, statement))
    return await in_thread(execute_here, session, statement, parameters)


def execute_here(session: OwnedSession, statement: Executable, parameters: Any = None) -> Any:
    """Do as `execute`, in a thread or greenlet in which a synchronous session may talk to the database."""
    return session.execute(statement, parameters, execution_options=_options(session, statement))


def _options(session: AnySession | OwnedSession, statement: Executable) -> dict[str, Any]:
    clause: Any = statement  # some sessions choose the engine by the statement
    return {_TRANSLATION: _translation(session.get_bind(clause=clause))}


def connection_options(connection: Connection) -> dict[str, Any]:
    """The execution options of a statement on a connection that is not ours: the engine's translation of schemas."""
    return {_TRANSLATION: _translation(connection)}


def _translation(bind: Engine | Connection) -> Mapping[str | None, str | None]:
    """The schema translation of the engine, which holds for all its sessions."""
    return bind.engine.get_execution_options().get(_TRANSLATION) or {}


async def run(session: AnySession, act: Callable[[OwnedSession], T]) -> T:
    """Call `act` with the synchronous session, as one operation, where the session may talk to the database."""
    inner = sync_session_of(session)
    if isinstance(session, AsyncSession):
        return await session.run_sync(lambda _: act(inner))
    return await in_thread(_as_operation, inner, act)


def _as_operation(session: OwnedSession, act: Callable[[OwnedSession], T]) -> T:
    with session.access.operation():
        return act(session)


@dataclass(frozen=True, slots=True)
class DriverStatement:
    """A statement as SQL for one driver, compiled once.

    SQLAlchemy's own execution makes a statement that runs in every job twice as expensive. This way has no conversion
    of values, no schema translation and no events. So it is used only for types that need no conversion, and only if
    `is_equivalent`.
    """

    sql: str
    order: tuple[str, ...] | None
    """The order of the parameters. None if the driver takes them by name."""
    constants: Mapping[str, Any]
    """Parameters with fixed values."""
    options: Mapping[str, Any]

    @classmethod
    def of(cls, statement: Executable, dialect: Dialect) -> Self:
        compiled: Any = statement.compile(dialect=dialect)  # type: ignore[attr-defined]  # not declared by the protocol
        order = None if compiled.positiontup is None else tuple(compiled.positiontup)
        return cls(compiled.string, order, compiled.params, compiled.execution_options)

    @staticmethod
    def is_equivalent(session: OwnedSession, connection: Connection) -> bool:
        """Whether it has the same effect as the statement itself: no schema translation, and no listeners."""
        return not (
            _translation(connection)
            or session.dispatch.do_orm_execute
            or has_listeners(connection, "before_execute", "after_execute")
        )

    def write(self, connection: Connection, values: Mapping[str, Any]) -> int:
        """Run the statement, and return the number of rows that it wrote."""
        return connection.exec_driver_sql(self.sql, self._parameters(values), self.options).rowcount

    def close(self, connection: Connection, values: Mapping[str, Any]) -> bool:
        """Run the statement with the COMMIT. If that cannot be, return False: `write` makes it possible next time."""
        return closes(connection, self.sql, self._parameters(values))

    def _parameters(self, values: Mapping[str, Any]) -> Any:
        given = {**self.constants, **values}
        return given if self.order is None else tuple(map(given.__getitem__, self.order))

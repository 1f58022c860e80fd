"""Running a statement in a session, whichever of the two kinds it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, Dialect, Executable

from db import AsyncSession, Session
from db.guarded import Guarded, sync_part
from db.threads import in_thread

T = TypeVar("T")

AnySession = AsyncSession | Session


async def execute(session: AnySession, statement: Executable, parameters: Any = None) -> Any:
    """Run it; its result. A sequence of parameters is many rows."""
    if isinstance(session, AsyncSession):
        return await session.execute(statement, parameters)
    return await in_thread(session.execute, statement, parameters)


async def run(session: AnySession, act: Callable[[Guarded], T]) -> T:
    """Call `act`, as one operation, with the synchronous session: there it may talk to the database."""
    inner = sync_part(session)
    if isinstance(session, AsyncSession):
        return await session.run_sync(lambda _: act(inner))
    return await in_thread(_alone, inner, act)


def _alone(session: Guarded, act: Callable[[Guarded], T]) -> T:
    with session.use.operation():
        return act(session)


@dataclass(frozen=True, slots=True)
class DriverStatement:
    """A statement in the words of one driver.

    SQLAlchemy's own way from a statement to its words makes one that runs in every job twice as dear. Values reach the
    driver as they are, and tables keep their schema: this is for types that need no conversion, and for connections
    that translate no schema.
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

    def write(self, connection: Connection, values: Mapping[str, Any]) -> int:
        """Run it; how many rows it wrote."""
        given = {**self.constants, **values}
        parameters = given if self.order is None else tuple(given[name] for name in self.order)
        return connection.exec_driver_sql(self.words, parameters, self.options).rowcount

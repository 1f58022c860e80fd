"""``Pauses``: the rows of paused queues and schedules.

A row stands for a pause as long as it exists and its end has not come, by the database's clock.
"""

from collections.abc import Collection
from enum import StrEnum
from typing import NamedTuple

from sqlalchemy import delete, or_, select

from db import default_database
from db.scope import scope
from worker.ledger.control_tables import PAUSES, control_table
from worker.ledger.execute import AnySession, execute
from worker.ledger.schema_check import explained
from worker.ledger.statements import insert_of
from worker.ledger.table import NAME, now_ms, table


class PauseKind(StrEnum):
    """The kind of what is paused."""

    QUEUE = "queue"
    SCHEDULE = "schedule"


class PauseRow(NamedTuple):
    """A pause. Times are milliseconds since the epoch."""

    kind: PauseKind
    name: str
    since: int
    actor: str
    until: int | None = None
    """None: until a person ends it."""
    due_before: int | None = None
    """Of a queue: the jobs that were due before this time still start. None: no job starts."""


class Pauses:
    """The pauses in the default database.

    Args:
        name: the name of the ledger's table (default: ``tandem_jobs``).
    """

    def __init__(self, name: str = NAME) -> None:
        self._name = name
        self._pauses = control_table(table(name), PAUSES)

    async def read(self, kind: PauseKind, names: Collection[str] | None = None) -> dict[str, PauseRow]:
        """The pauses of this kind, by name.

        Args:
            names: only the pauses of these (default: of all).

        Raises:
            LedgerError: there is no such table.
        """
        pause = self._pauses.c
        statement = select(self._pauses).where(pause.kind == kind.value)
        statement = statement.where(or_(pause.until.is_(None), pause.until > now_ms()))
        if names is not None:
            statement = statement.where(pause.name.in_(names))
        async with scope() as work:
            session = await work.session(default_database())
            with explained(self._name):
                rows = (await execute(session, statement)).mappings().all()
        return {row["name"]: PauseRow(**{**row, "kind": PauseKind(row["kind"])}) for row in rows}

    async def write(self, session: AnySession, row: PauseRow) -> None:
        """Write a pause in the session's transaction, in place of an earlier one."""
        insert = insert_of(session.get_bind().dialect.name)
        written = insert(self._pauses).values(row._asdict() | {"kind": row.kind.value})
        replaced = {field: written.excluded[field] for field in ("since", "actor", "until", "due_before")}
        with explained(self._name):
            await execute(session, written.on_conflict_do_update(index_elements=["kind", "name"], set_=replaced))

    async def end(self, session: AnySession, kind: PauseKind, name: str) -> bool:
        """Delete a pause in the session's transaction. False if there was none, or its end had come."""
        pause = self._pauses.c
        of_name = (pause.kind == kind.value, pause.name == name)
        is_over = pause.until <= now_ms()
        with explained(self._name):
            await execute(session, delete(self._pauses).where(*of_name, is_over))
            return bool((await execute(session, delete(self._pauses).where(*of_name))).rowcount)

"""``Audit``: the audit rows. Each is one action of a person.

An action whose effect is in the database writes its row in the same transaction. An action whose effect is in Redis
writes its row first, without an outcome, and the outcome once it is known.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic_core import to_json
from sqlalchemy import insert, select, update

from db import default_database
from db.scope import scope
from worker.ledger.control_tables import AUDIT, control_table
from worker.ledger.execute import AnySession, execute
from worker.ledger.schema_check import explained
from worker.ledger.table import NAME, now_ms, table
from worker.ledger.time_limit import limit_time


class AuditRow(NamedTuple):
    """An action that a person takes."""

    actor: str
    action: str
    subject: str
    detail: Mapping[str, Any]
    outcome: str | None = None


class Audit:
    """The audit rows of the default database.

    Args:
        name: the name of the ledger's table (default: ``tandem_jobs``).
    """

    def __init__(self, name: str = NAME) -> None:
        self._name = name
        self._audit = control_table(table(name), AUDIT)

    async def add(self, session: AnySession, row: AuditRow) -> int:
        """Write a row in the session's transaction, and return its id.

        Raises:
            LedgerError: there is no such table.
        """
        values = row._asdict() | {"detail": to_json(row.detail).decode(), "at": now_ms()}
        with explained(self._name):
            written = await execute(session, insert(self._audit).values(values).returning(self._audit.c.id))
            return int(written.scalar_one())

    async def begin(self, row: AuditRow) -> int:
        """Write a row in a transaction of its own, and return its id."""
        async with scope() as work:
            session = await work.session(default_database())
            return await self.add(session, row)

    async def set_outcome(self, row_id: int, outcome: str) -> None:
        """Write what came of an action, in a transaction of its own."""
        async with scope() as work:
            session = await work.session(default_database())
            await execute(session, update(self._audit).where(self._audit.c.id == row_id).values(outcome=outcome))

    async def read(self, *, before: int | None, limit: int, **equal: str | None) -> Sequence[Mapping[str, Any]]:
        """The rows with the largest ids first, up to `limit`, as dicts by column.

        Args:
            before: only rows with smaller ids.
            equal: only rows that have these values. A value that ends with a dot stands for all that begin with it.
        """
        statement = select(self._audit).order_by(self._audit.c.id.desc()).limit(limit)
        if before is not None:
            statement = statement.where(self._audit.c.id < before)
        for name, value in equal.items():
            if value is not None:
                column = self._audit.c[name]
                is_group = value.endswith(".")
                statement = statement.where(column.startswith(value, autoescape=True) if is_group else column == value)
        async with scope() as work:
            session = await work.session(default_database())
            await limit_time(session)
            with explained(self._name):
                rows: Sequence[Mapping[str, Any]] = (await execute(session, statement)).mappings().all()
        return rows

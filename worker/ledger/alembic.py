"""The ledger's tables beside a project's own Alembic.

1. `include_object` keeps autogenerate away from tables that the project's metadata does not have.
2. `upgrade` and `downgrade` are for a revision of the project. They do what ``tandem migrate`` does, in Alembic's own
   transaction, so that either may come first.
"""

from typing import Any

from alembic.operations import Operations

from worker.errors import LedgerError
from worker.ledger.default import default_ledger
from worker.ledger.migrate import downgrade_on, upgrade_on, version_table
from worker.ledger.table import table

_PUBLIC = "public"  # PostgreSQL's default schema, which Alembic calls None


def include_object(candidate: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:
    """Leave the ledger's tables out of autogenerate, unless the project's own metadata has them.

    For ``context.configure(include_object=...)`` in ``env.py``.
    """
    if kind != "table" or not reflected or compare_to is not None:
        return True
    ours = default_ledger().name
    schema, _, bare = ours.rpartition(".")
    names = {each.name for each in table(ours).metadata.tables.values()} | {version_table(bare)}
    return name not in names or _plain(candidate.schema) != _plain(schema)


def upgrade(op: Operations | Any, version: str = "head", *, name: str | None = None) -> None:
    """Create the ledger's tables, or update them, in a revision of the project: ``upgrade(op)``.

    It does nothing if ``tandem migrate`` or an earlier revision has done it.

    Args:
        op: ``alembic.op``.
        version: the ledger's version (default: the latest one of the installed Tandem).
        name: the ledger's table (default: that of ``WORKER_LEDGER``).

    Raises:
        LedgerError: as `worker.ledger.migrate.upgrade`, or Alembic only prints SQL.
    """
    upgrade_on(_connection(op), name or default_ledger().name, version=version, adopt=True)


def downgrade(op: Operations | Any, version: str = "base", *, name: str | None = None) -> None:
    """Take the ledger's tables back to an earlier version, or drop them, in a revision of the project.

    Args:
        op: ``alembic.op``.
        version: the ledger's version that remains (default: none, all tables are dropped with their jobs).
        name: as `upgrade`.

    Raises:
        LedgerError: as `upgrade`.
    """
    downgrade_on(_connection(op), name or default_ledger().name, version)


def _connection(op: Any) -> Any:
    if op.get_context().as_sql:
        raise LedgerError(
            "Alembic prints SQL and has no connection, so the ledger's version is unknown: run 'tandem migrate --sql' "
            "for the SQL of a new ledger"
        )
    return op.get_bind()


def _plain(schema: str | None) -> str | None:
    return None if schema in ("", _PUBLIC) else schema

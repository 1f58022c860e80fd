"""Creating and upgrading the ledger's table: ``python -m worker migrate``.

1. A migration is one transaction under a lock. Another process that migrates waits, and then finds nothing to do.
2. The version is kept beside the table, in ``tandem_jobs_version``, not in a project's own ``alembic_version``.
3. A table that other software has created, for example a project's own Alembic, is not changed.
"""

from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext, MigrationStep, RevisionStep
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from sqlalchemy import Connection, Inspector, inspect, text
from sqlalchemy.schema import CreateSchema

from db import AsyncSession, Database
from db.aio.threads import in_thread
from db.scope import scope
from worker.errors import LedgerError
from worker.ledger.schema_check import require_dialect
from worker.ledger.table import NAME, table

_LOCK = 0x7461_6E64_656D  # "tandem": the number of an advisory lock of PostgreSQL, which is held per database
_MIGRATIONS = ScriptDirectory(str(Path(__file__).parent / "migrations"))


class Upgrade(NamedTuple):
    """The table's versions before and after a migration."""

    before: str | None
    """None if there was no table."""
    after: str | None
    """None if the table is complete and was created by other software."""


async def upgrade(database: Database[Any], name: str = NAME) -> Upgrade:
    """Create the ledger's table in `database`, or upgrade it. Several processes may do so at the same time.

    Args:
        name: the name of the table, with its schema if it has one. The schema is created too.

    Raises:
        LedgerError: the database cannot hold a ledger, or its table is of a newer version, or its table is old and was
            created by other software.
    """
    async with scope() as work:
        session = await work.session(database)
        dialect = session.get_bind().dialect.name
        require_dialect(dialect, name)
        # After the wait for the lock the transaction must see what was committed meanwhile.
        options = {"isolation_level": "READ COMMITTED"} if dialect == "postgresql" else {}
        if isinstance(session, AsyncSession):
            return await (await session.connection(execution_options=options)).run_sync(upgrade_on, name)
        return await in_thread(lambda: upgrade_on(session.connection(execution_options=options), name))


def upgrade_on(connection: Connection, name: str = NAME) -> Upgrade:
    """Do as `upgrade`, in the transaction of a connection. The caller commits it.

    Raises:
        LedgerError: as `upgrade`.
    """
    require_dialect(connection.dialect.name, name)
    schema, bare = _parts(name)
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    inspector = inspect(connection)
    # Not IF NOT EXISTS, which needs the right to create schemas even if the schema exists.
    if schema is not None and not inspector.has_schema(schema):
        connection.execute(CreateSchema(schema))
    context = MigrationContext.configure(connection, opts=_options(name))
    before = context.get_current_revision()
    if before is None and inspector.has_table(bare, schema):
        _require_complete(inspector, name)
        return Upgrade(None, None)
    try:
        _run(context, name)
    except RevisionError:
        raise LedgerError(
            f"the ledger's table {name} is of version {before}, which this version of Tandem does not know: "
            "upgrade Tandem, as a newer version has migrated the table"
        ) from None
    return Upgrade(before, context.get_current_revision())


def upgrade_sql(dialect: str, name: str = NAME) -> str:
    """The SQL of `upgrade` for a database of `dialect` that has no ledger yet.

    Raises:
        LedgerError: such a database cannot hold a ledger.
    """
    require_dialect(dialect, name)
    schema, _ = _parts(name)
    script = StringIO()
    context = MigrationContext.configure(
        dialect_name=dialect, opts={**_options(name), "as_sql": True, "output_buffer": script}
    )
    with context.begin_transaction():
        if schema is not None:
            context.impl.execute(CreateSchema(schema, if_not_exists=True))
        _run(context, name)
    return script.getvalue()


def _require_complete(inspector: Inspector, name: str) -> None:
    schema, bare = _parts(name)
    absent = [each.name for each in table(name).metadata.sorted_tables if not inspector.has_table(each.name, schema)]
    if absent:
        raise LedgerError(
            f"the ledger's table {name} was not made by 'migrate': let the migrations that made it add the tables "
            f"{', '.join(absent)} of worker.ledger.table().metadata"
        )
    missing = {*table(name).columns.keys()} - {column["name"] for column in inspector.get_columns(bare, schema)}
    if missing:
        raise LedgerError(
            f"the ledger's table {name} is old, and was not made by 'migrate': let the migrations that made it add the "
            f"columns {', '.join(sorted(missing))}"
        )


def _run(context: MigrationContext, name: str) -> None:
    # Not through alembic.op and alembic.context: a process has only one, which the caller may be using.
    schema, bare = _parts(name)
    context.run_migrations(op=Operations(context), table=bare, schema=schema)


def _options(name: str) -> dict[str, Any]:
    schema, bare = _parts(name)
    # SQLite's DDL is transactional if the driver begins no transactions by itself.
    return {
        "version_table": f"{bare}_version",
        "version_table_schema": schema,
        "transactional_ddl": True,
        "fn": _steps,
    }


def _steps(heads: tuple[str, ...], _context: MigrationContext) -> Iterator[RevisionStep]:
    """The migrations that have not been run yet, the oldest first."""
    missing = list(_MIGRATIONS.iterate_revisions("head", heads or "base"))
    for script in reversed(missing):
        yield MigrationStep.upgrade_from_script(_MIGRATIONS.revision_map, script)


def _parts(name: str) -> tuple[str | None, str]:
    schema, _, bare = name.rpartition(".")
    return schema or None, bare

"""Makes the ledger's table, and brings an old one up to date: ``python -m worker migrate``.

1. Who migrates first lets the others wait, who then find nothing to do; all of it is one transaction.
2. The version is kept beside the table, as ``tandem_jobs_version``: not in a project's own ``alembic_version``.
3. A table that something else has made, as a project's own Alembic may, is left to it.
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

_LOCK = 0x7461_6E64_656D  # "tandem": PostgreSQL keeps such locks by number, for each database
_MIGRATIONS = ScriptDirectory(str(Path(__file__).parent / "migrations"))


class Upgrade(NamedTuple):
    """What a migration has done, by the table's versions."""

    before: str | None
    """None: there was no table."""
    after: str | None
    """None: the table is complete, and was made by something else."""


async def upgrade(database: Database[Any], name: str = NAME) -> Upgrade:
    """Make the ledger's table in `database`, or bring it up to date. Any number of processes may do so at once.

    Args:
        name: of the table, with its schema if it has one, which is made too.

    Raises:
        LedgerError: the database can hold no ledger, or its table is another version's or somebody else's.
    """
    async with scope() as work:
        session = await work.session(database)
        dialect = session.get_bind().dialect.name
        require_dialect(dialect, name)
        # Who has waited for the lock has to see what was committed meanwhile.
        options = {"isolation_level": "READ COMMITTED"} if dialect == "postgresql" else {}
        if isinstance(session, AsyncSession):
            return await (await session.connection(execution_options=options)).run_sync(upgrade_on, name)
        return await in_thread(lambda: upgrade_on(session.connection(execution_options=options), name))


def upgrade_on(connection: Connection, name: str = NAME) -> Upgrade:
    """`upgrade` in the transaction of a connection, which is the caller's to commit.

    Raises:
        LedgerError: as above.
    """
    require_dialect(connection.dialect.name, name)
    schema, bare = _parts(name)
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    inspector = inspect(connection)
    # Not IF NOT EXISTS, which asks for the right to make schemas even where there is nothing to make.
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
            f"the ledger's table {name} is of version {before}, which is not known here: it was migrated by a newer "
            "version of this package"
        ) from None
    return Upgrade(before, context.get_current_revision())


def upgrade_sql(dialect: str, name: str = NAME) -> str:
    """What `upgrade` says to a database of `dialect` that has no ledger yet, as SQL.

    Raises:
        LedgerError: such a database can hold no ledger.
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
    missing = {*table(name).columns.keys()} - {column["name"] for column in inspector.get_columns(bare, schema)}
    if missing:
        raise LedgerError(
            f"the ledger's table {name} is old, and was not made by 'migrate': let the migrations that made it add "
            f"{', '.join(sorted(missing))}"
        )


def _run(context: MigrationContext, name: str) -> None:
    # Not through alembic.op and alembic.context, of which a process has one: it may be the caller's just now.
    schema, bare = _parts(name)
    context.run_migrations(op=Operations(context), table=bare, schema=schema)


def _options(name: str) -> dict[str, Any]:
    schema, bare = _parts(name)
    # SQLite's DDL is transactional, once the driver begins no transactions by itself.
    return {
        "version_table": f"{bare}_version",
        "version_table_schema": schema,
        "transactional_ddl": True,
        "fn": _steps,
    }


def _steps(heads: tuple[str, ...], _context: MigrationContext) -> Iterator[RevisionStep]:
    """The migrations that are still to be run, the oldest first."""
    missing = list(_MIGRATIONS.iterate_revisions("head", heads or "base"))
    for script in reversed(missing):
        yield MigrationStep.upgrade_from_script(_MIGRATIONS.revision_map, script)


def _parts(name: str) -> tuple[str | None, str]:
    schema, _, bare = name.rpartition(".")
    return schema or None, bare

"""Creating and upgrading the ledger's table: ``python -m worker migrate``.

1. A migration is one transaction under a lock. Another process that migrates waits, and then finds nothing to do.
2. The version is kept beside the table, in ``tandem_jobs_version``, not in a project's own ``alembic_version``.
3. A table that other software has created, for example a project's own Alembic, is not changed, unless it is adopted.
   Then it gets the version whose columns and indexes it has.
4. A table that has more than its version says has been changed by other software. Migrations that it needs no more are
   left out.
"""

from collections.abc import Callable
from functools import partial
from io import StringIO
from typing import Any, NamedTuple, TypeVar

from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script.revision import RevisionError
from sqlalchemy import Connection, Inspector, MetaData, Table, inspect, text
from sqlalchemy.schema import CreateSchema

from db import AsyncSession, Database
from db.aio.threads import in_thread
from db.scope import scope
from worker.errors import LedgerError
from worker.ledger.revisions import Part, parts_of, stamp, steps_to, version_of, versions
from worker.ledger.schema_check import require_dialect
from worker.ledger.table import NAME, table

_LOCK = 0x7461_6E64_656D  # "tandem": the number of an advisory lock of PostgreSQL, which is held per database
_BASE, _HEAD = "base", "head"

T = TypeVar("T")


class Upgrade(NamedTuple):
    """The table's versions before and after a migration."""

    before: str | None
    """None if there was no table."""
    after: str | None
    """None if the table is complete and was created by other software."""
    adopted: bool = False
    """Whether other software had created the table."""


async def upgrade(database: Database[Any], name: str = NAME, *, adopt: bool = False) -> Upgrade:
    """Create the ledger's table in `database`, or upgrade it. Several processes may do so at the same time.

    Args:
        name: the name of the table, with its schema if it has one. The schema is created too.
        adopt: also upgrade a table that other software has created.

    Raises:
        LedgerError: the database cannot hold a ledger, or its table is of a newer version, or its table is old and was
            created by other software.
    """
    return await _in_transaction(database, name, partial(upgrade_on, name=name, adopt=adopt))


async def release(database: Database[Any], name: str = NAME) -> bool:
    """Forget the version of the ledger's table, so that `upgrade` leaves the table to other software.

    Returns:
        Whether there was a version.
    """
    return await _in_transaction(database, name, partial(_release_on, name=name))


def upgrade_on(connection: Connection, name: str = NAME, *, version: str = _HEAD, adopt: bool = False) -> Upgrade:
    """Do as `upgrade`, in the transaction of a connection. The caller commits it.

    Args:
        version: the version to upgrade to. A table of a later one stays as it is.

    Raises:
        LedgerError: as `upgrade`, or there is no such version.
    """
    require_dialect(connection.dialect.name, name)
    schema, bare = _parts(name)
    goal = _known(version)
    _lock(connection)
    inspector = inspect(connection)
    # Not IF NOT EXISTS, which needs the right to create schemas even if the schema exists.
    if schema is not None and not inspector.has_schema(schema):
        connection.execute(CreateSchema(schema))
    context = MigrationContext.configure(connection, opts=_options(name, goal))
    before = context.get_current_revision()
    adopted = before is None and inspector.has_table(bare, schema)
    if adopted and not adopt:
        _require_complete(inspector, name)
        return Upgrade(None, None)
    try:
        made = version_of(connection, bare, schema) if adopted or _is_before(before, goal) else before
        if adopted and made is None:
            raise LedgerError(f"the table {name} has not all columns and indexes of a ledger's table: rename it")
        if made is not None and _is_before(before, made):
            stamp(context, made)
        if _is_before(context.get_current_revision(), goal):
            _run(context, name)
    except RevisionError:
        raise _unknown(name, before) from None
    return Upgrade(made if adopted else before, context.get_current_revision(), adopted)


def downgrade_on(connection: Connection, name: str = NAME, version: str = _BASE) -> None:
    """Take the ledger's tables back to an earlier version, in the transaction of a connection.

    What later versions have added is dropped; for ``base`` all tables are.

    Raises:
        LedgerError: as `upgrade_on`.
    """
    require_dialect(connection.dialect.name, name)
    schema, bare = _parts(name)
    goal = None if version == _BASE else _known(version)
    _lock(connection)
    context = MigrationContext.configure(connection, opts=_options(name))
    current = context.get_current_revision() or version_of(connection, bare, schema)
    if current is None:
        return
    if current not in versions():
        raise _unknown(name, current)
    if not _is_before(goal, current):
        return
    _drop(Operations(context), parts_of(current) - parts_of(version), bare, schema)
    if goal is None:
        _release_on(connection, name)
    else:
        stamp(context, goal)


def version_table(bare: str) -> str:
    """The name of the table that keeps the version of the ledger's table `bare`."""
    return f"{bare}_version"


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


async def _in_transaction(database: Database[Any], name: str, act: Callable[[Connection], T]) -> T:
    async with scope() as work:
        session = await work.session(database)
        dialect = session.get_bind().dialect.name
        require_dialect(dialect, name)
        # After the wait for the lock the transaction must see what was committed meanwhile.
        options = {"isolation_level": "READ COMMITTED"} if dialect == "postgresql" else {}
        if isinstance(session, AsyncSession):
            return await (await session.connection(execution_options=options)).run_sync(act)
        return await in_thread(lambda: act(session.connection(execution_options=options)))


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})


def _release_on(connection: Connection, name: str) -> bool:
    schema, bare = _parts(name)
    if not inspect(connection).has_table(version_table(bare), schema):
        return False
    Table(version_table(bare), MetaData(schema=schema)).drop(connection)
    return True


def _drop(op: Operations, parts: frozenset[Part], bare: str, schema: str | None) -> None:
    tables = {part.table for part in parts if part.kind == "table"}
    rest = [part for part in parts if part.table not in tables]
    for part in sorted(rest, key=lambda part: part.kind, reverse=True):  # indexes before their columns
        if part.kind == "index":
            op.drop_index(bare + part.name, bare + part.table, schema=schema)
        else:
            op.drop_column(bare + part.table, part.name, schema=schema)
    for suffix in tables:
        op.drop_table(bare + suffix, schema=schema)


def _known(version: str) -> str:
    known = versions()
    if version not in (_HEAD, *known):
        raise LedgerError(f"this version of Tandem knows no version {version} of the ledger: it has {', '.join(known)}")
    return known[-1] if version == _HEAD else version


def _is_before(one: str | None, other: str | None) -> bool:
    """Whether a version comes before another one. None comes before all.

    Raises:
        RevisionError: this Tandem does not know the version.
    """
    known = versions()
    if one is not None and one not in known:
        raise RevisionError(one)
    return other is not None and (one is None or known.index(one) < known.index(other))


def _unknown(name: str, version: str | None) -> LedgerError:
    return LedgerError(
        f"the ledger's table {name} is of version {version}, which this version of Tandem does not know: "
        "upgrade Tandem, as a newer version has migrated the table"
    )


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


def _options(name: str, goal: str = _HEAD) -> dict[str, Any]:
    schema, bare = _parts(name)
    # SQLite's DDL is transactional if the driver begins no transactions by itself.
    return {
        "version_table": version_table(bare),
        "version_table_schema": schema,
        "transactional_ddl": True,
        "fn": steps_to(goal),
    }


def _parts(name: str) -> tuple[str | None, str]:
    schema, _, bare = name.rpartition(".")
    return schema or None, bare

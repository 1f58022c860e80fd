"""Checking that the ledger's table exists, and errors that say what to do if it does not or may not be used."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from db import Database
from db.sessions import independent
from db.transient import sqlstate
from worker.errors import LedgerError
from worker.ledger.execute import AnySession, execute
from worker.ledger.statements import DIALECTS
from worker.ledger.table import table

_MISSING = ("42P01", "no such table")  # PostgreSQL's code, and SQLite's message
_OLD = ("42703", "no such column")
_SCHEMA = text(
    "SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
    " WHERE pg_class.oid = to_regclass(quote_ident(:name))"
)
_FORBIDDEN = "42501"
_READ_ONLY = "25006"
GRANTS = "SELECT, INSERT, UPDATE"
"""The rights on the table that a role needs to run or enqueue jobs."""


async def check(database: Database[Any], name: str) -> str:
    """Check that `database` has the ledger's tables with all of their columns, whatever software has created them.

    Returns:
        The table's name, with its schema if it has one. So a job that sets `search_path` still finds this table.

    Raises:
        LedgerError: the table is missing or old, or the database is of a kind that cannot hold a ledger.
    """
    async with independent(database) as session:
        require_dialect(session.get_bind().dialect.name, name)
        for each in table(name).metadata.sorted_tables:
            with explained(each.fullname):
                await execute(session, select(*each.columns).limit(0))
        return await _with_schema(session, name)


@contextmanager
def explained(name: str, *, lent: bool = False) -> Iterator[None]:
    """Replace an error about the table itself, raised in this block, by a `LedgerError` that says what to do.

    Args:
        name: the name of the table.
        lent: whether the session is the caller's, who may have set a search_path.
    """
    try:
        yield
    except DBAPIError as error:
        explanation = explain(error, name, lent=lent)
        if explanation is None:
            raise
        raise explanation from None


def explain(error: DBAPIError, name: str, *, lent: bool = False) -> LedgerError | None:
    """The `LedgerError` for an error about the table itself: it is missing or old, or may not be written. Else None."""
    problem = _table_problem(error)
    if problem is not None:
        elsewhere = ""
        if lent and sqlstate(error) == _MISSING[0] and "." not in name:
            elsewhere = f" (or, if the session has set another search_path, WORKER_LEDGER=<schema>.{name})"
        return LedgerError(f"the ledger's table {name} is {problem}: run 'python -m worker migrate'{elsewhere}")
    if sqlstate(error) == _FORBIDDEN:
        return LedgerError(
            f"GRANT {GRANTS} ON {name} TO the role that the session has set (and USAGE on its schema): "
            f"{str(error.orig).rpartition(': ')[2]}"
        )
    if sqlstate(error) == _READ_ONLY and not error.connection_invalidated:
        return read_only(name)
    return None


def read_only(name: str) -> LedgerError:
    """The error for a transaction that was made read-only, so that the job's row cannot be written."""
    return LedgerError(
        f"the transaction was made read-only, so {name} cannot be written in it: write nothing before SET TRANSACTION "
        "READ ONLY, and run that statement in the task itself, not in a database function"
    )


def require_dialect(dialect: str, name: str) -> None:
    """Raise `LedgerError` if a database of this kind cannot hold a ledger of this name."""
    if dialect not in DIALECTS:
        raise LedgerError(f"the ledger needs PostgreSQL or SQLite, and the default database is {dialect}")
    if dialect == "sqlite" and "." in name:
        raise LedgerError(f"WORKER_LEDGER={name}: SQLite has no schemas. Example: WORKER_LEDGER=tandem_jobs")


async def _with_schema(session: AnySession, name: str) -> str:
    bind = session.get_bind()
    is_translated = bool(bind.get_execution_options().get("schema_translate_map"))
    if "." in name or bind.dialect.name != "postgresql" or is_translated:
        return name
    found = await execute(session, _SCHEMA, {"name": name})
    schema: str | None = found.scalar()
    return name if schema is None or "." in schema else f"{schema}.{name}"


def _table_problem(error: DBAPIError) -> str | None:
    for problem, (code, message) in {"missing": _MISSING, "old": _OLD}.items():
        if sqlstate(error) == code or message in str(error.orig):
            return problem
    return None

"""Whether the ledger's table is there, and what to say where it is not, or may not be used."""

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

_MISSING = ("42P01", "no such table")  # PostgreSQL's code, and SQLite's words
_OLD = ("42703", "no such column")
_SCHEMA = text(
    "SELECT nspname FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace"
    " WHERE pg_class.oid = to_regclass(quote_ident(:name))"
)
_FORBIDDEN = "42501"
_READ_ONLY = "25006"
GRANTS = "SELECT, INSERT, UPDATE"
"""What a role needs on the table, in which jobs run or enqueue."""


async def check(database: Database[Any], name: str) -> str:
    """See that `database` holds the ledger, with all of its columns, whoever has made it.

    Returns:
        The table's name with its schema, where it has one: whatever `search_path` a job sets, it is that table.

    Raises:
        LedgerError: it does not, or it is a kind of database that can hold none.
    """
    async with independent(database) as session:
        require_dialect(session.get_bind().dialect.name, name)
        every_column = select(*table(name).columns).limit(0)
        with explained(name):
            await execute(session, every_column)
        return await _with_schema(session, name)


@contextmanager
def explained(name: str, *, lent: bool = False) -> Iterator[None]:
    """Inside, an error about the table itself becomes a `LedgerError` that says what to do.

    Args:
        name: of the table.
        lent: the session is somebody else's, who may have set a search_path.
    """
    try:
        yield
    except DBAPIError as error:
        explanation = explain(error, name, lent=lent)
        if explanation is None:
            raise
        raise explanation from None


def explain(error: DBAPIError, name: str, *, lent: bool = False) -> LedgerError | None:
    """What to say of an error about the table itself: it is not there, or old, or may not be written."""
    what = _what_is_wrong(error)
    if what is not None:
        elsewhere = ""
        if lent and sqlstate(error) == _MISSING[0] and "." not in name:
            elsewhere = f" (or, if the session has set another search_path, WORKER_LEDGER=<schema>.{name})"
        return LedgerError(f"the ledger's table {name} is {what}: run 'python -m worker migrate'{elsewhere}")
    if sqlstate(error) == _FORBIDDEN:
        return LedgerError(
            f"GRANT {GRANTS} ON {name} TO the role that the session has set (and USAGE on its schema): "
            f"{str(error.orig).rpartition(': ')[2]}"
        )
    if sqlstate(error) == _READ_ONLY and not error.connection_invalidated:
        return read_only(name)
    return None


def read_only(name: str) -> LedgerError:
    """What to say where a job has written, and cannot write its row any more."""
    return LedgerError(
        f"the transaction was made read-only, so that {name} cannot be written with it: write nothing before "
        "SET TRANSACTION READ ONLY, and say it in the task's own words, not in a function's"
    )


def require_dialect(dialect: str, name: str) -> None:
    """Raise `LedgerError` for a kind of database that cannot hold a ledger of this name."""
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


def _what_is_wrong(error: DBAPIError) -> str | None:
    for what, (code, words) in {"missing": _MISSING, "old": _OLD}.items():
        if sqlstate(error) == code or words in str(error.orig):
            return what
    return None

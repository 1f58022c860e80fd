"""Whether the ledger's table is there, and what to say where it is not."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import DBAPIError

from db import Database
from db.sessions import independent
from db.transient import sqlstate
from worker.errors import LedgerError
from worker.ledger.execution import execute
from worker.ledger.statements import DIALECTS
from worker.ledger.table import table

_MISSING = ("42P01", "no such table")  # PostgreSQL's code, and SQLite's words
_OLD = ("42703", "no such column")


async def check(database: Database[Any], name: str) -> None:
    """See that `database` holds the ledger, with all of its columns, whoever has made it.

    Raises:
        LedgerError: it does not, or it is a kind of database that can hold none.
    """
    async with independent(database) as session:
        require_dialect(session.get_bind().dialect.name, name)
        every_column = select(*table(name).columns).limit(0)
        with explained(name):
            await execute(session, every_column)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """Inside, an error about a table or a column that is not there becomes a `LedgerError` that says what to do."""
    try:
        yield
    except DBAPIError as error:
        what = _what_is_wrong(error)
        if what is None:
            raise
        raise LedgerError(f"the ledger's table {name} is {what}: run 'python -m worker migrate'") from None


def require_dialect(dialect: str, name: str) -> None:
    """Raise `LedgerError` for a kind of database that cannot hold a ledger of this name."""
    if dialect not in DIALECTS:
        raise LedgerError(f"the ledger needs PostgreSQL or SQLite, and the default database is {dialect}")
    if dialect == "sqlite" and "." in name:
        raise LedgerError(f"WORKER_LEDGER={name}: SQLite has no schemas. Example: WORKER_LEDGER=tandem_jobs")


def _what_is_wrong(error: DBAPIError) -> str | None:
    for what, (code, words) in {"missing": _MISSING, "old": _OLD}.items():
        if sqlstate(error) == code or words in str(error.orig):
            return what
    return None

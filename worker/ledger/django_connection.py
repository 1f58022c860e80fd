"""Pending rows in the transaction of a Django connection, for projects whose rows are saved by Django's ORM.

Django has its own cursors, so the ledger's statements are compiled to SQL here. Django is not imported.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, Protocol

from sqlalchemy import Executable
from sqlalchemy.exc import DBAPIError

from worker.errors import LedgerError
from worker.ledger.execute import DriverStatement
from worker.ledger.rows import has_origin, parameters
from worker.ledger.schema_check import explain, require_dialect
from worker.ledger.statements import Statements
from worker.ledger.table import State
from worker.new_job import NewJob


class DjangoConnection(Protocol):
    """The parts of ``django.db.connection``, or of ``django.db.connections[alias]``, that are used."""

    vendor: str
    alias: str
    in_atomic_block: bool

    def cursor(self) -> Any: ...

    def on_commit(self, func: Callable[[], object]) -> None: ...


class DjangoLedger:
    """The ledger's table `name` in the transaction of `connection`.

    Raises:
        LedgerError: a database of this kind can hold no ledger.
    """

    def __init__(self, connection: DjangoConnection, name: str) -> None:
        require_dialect(connection.vendor, name)
        self._connection = connection
        self._name = name

    def add(self, jobs: Sequence[NewJob]) -> None:
        """Write the jobs' pending rows.

        Raises:
            LedgerError: the connection's database has no table of job rows.
        """
        with_origin = has_origin(jobs)
        statement = self._compiled("add", with_origin=with_origin)
        rows = [{**statement.constants, **parameters(job, with_origin=with_origin)} for job in jobs]
        self._run(lambda cursor: cursor.executemany(statement.sql, rows))

    def reserve(self, job: NewJob) -> bool:
        """Write the job's pending row. False if its id is pending already. Raises as `add`."""
        with_origin = has_origin([job])
        statement = self._compiled("reserve", with_origin=with_origin)
        row = {**statement.constants, **parameters(job, with_origin=with_origin)}
        return bool(self._run(lambda cursor: (cursor.execute(statement.sql, row), cursor.rowcount)[1]))

    def state(self, job: NewJob) -> State | None:
        """The state of a job. None if the ledger has no row of it."""
        statement = self._compiled("stored_result")
        key = {**statement.constants, "id": job.id, "enqueued_at": job.enqueued_at}
        found = self._run(lambda cursor: (cursor.execute(statement.sql, key), cursor.fetchone())[1])
        return None if found is None else State(found[0])

    def _compiled(self, statement: str, *, with_origin: bool = False) -> DriverStatement:
        return _compile(self._connection.vendor, self._name, statement, with_origin=with_origin)

    def _run(self, act: Callable[[Any], Any]) -> Any:
        try:
            with self._connection.cursor() as cursor:
                return act(cursor)
        except Exception as error:
            if (explanation := self._explanation(error)) is None:
                raise
            raise explanation from None

    def _explanation(self, error: Exception) -> LedgerError | None:
        """The `LedgerError` for Django's error about the table itself. Django's error was caused by the driver's."""
        cause = error.__cause__
        return None if cause is None else explain(DBAPIError(None, None, cause), self._name, lent=True)


@cache
def _compile(vendor: str, name: str, statement: str, *, with_origin: bool) -> DriverStatement:
    executable: Executable = getattr(Statements.of(vendor, name, with_origin=with_origin), statement)
    if vendor == "postgresql":
        from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg  # noqa: PLC0415 - Django's projects only

        return DriverStatement.of(executable, PGDialect_psycopg())  # type: ignore[no-untyped-call]
    from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite  # noqa: PLC0415 - likewise

    # Django's cursor formats the statement with the names of the parameters, which makes a single % of each two.
    named = DriverStatement.of(executable, SQLiteDialect_pysqlite(paramstyle="named"))
    return replace(named, sql=named.sql.replace("%", "%%"))

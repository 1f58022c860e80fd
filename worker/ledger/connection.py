"""Pending rows in the transaction of a connection: for code that enqueues in a session that no scope owns.

The functions are synchronous, as SQLAlchemy's connections are. Call them in a thread, or in a greenlet of SQLAlchemy,
in which the connection may talk to the database.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

from sqlalchemy import Connection, Executable, Insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from db.errors import PoisonedTransactionError
from db.transient import sqlstate
from worker.ledger.execute import connection_options
from worker.ledger.rows import StoredResult, has_origin, parameters
from worker.ledger.schema_check import explained, require_dialect
from worker.ledger.statements import Statements
from worker.ledger.table import State, table
from worker.new_job import NewJob

_ABORTED = "25P02"
_CHUNK = 1000  # ids in one statement; PostgreSQL allows 32767 parameters


class ConnectionLedger:
    """The ledger's table `name` in the transaction of `connection`.

    Raises:
        LedgerError: a database of this kind can hold no ledger.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        require_dialect(connection.dialect.name, name)
        self.connection = connection
        self._name = name

    @classmethod
    def of(cls, given: Session | Connection, name: str) -> "ConnectionLedger":
        """The ledger in the transaction of a session, or of a connection."""
        if isinstance(given, Connection):
            return cls(given, name)
        # The clause, as some sessions have an engine for each table, or one for writes.
        return cls(given.connection(bind_arguments={"clause": Insert(table(name))}), name)

    def add(self, jobs: Sequence[NewJob]) -> None:
        """Write the jobs' pending rows. Raises as `Ledger.add`."""
        with_origin = has_origin(jobs)
        values = [parameters(job, with_origin=with_origin) for job in jobs]
        self._execute(self._statements(with_origin=with_origin).add, values)

    def reserve(self, job: NewJob) -> bool:
        """Write the job's pending row, unless its id is pending already. Returns and raises as `Ledger.reserve`."""
        with_origin = has_origin([job])
        statement = self._statements(with_origin=with_origin).reserve
        return bool(self._execute(statement, parameters(job, with_origin=with_origin)).rowcount)

    def stored_result(self, job: NewJob) -> StoredResult | None:
        """The state and result of a job. None if the ledger has no row of it."""
        key = {"id": job.id, "enqueued_at": job.enqueued_at}
        row = self._execute(self._statements().stored_result, key).first()
        return None if row is None else StoredResult(State(row.state), row.result)

    def pending(self, jobs: Sequence[NewJob]) -> list[NewJob]:
        """Those of the jobs that have a pending row. The rows of others were rolled back to a savepoint.

        Raises:
            PoisonedTransactionError: an earlier error, which was caught, has aborted the transaction.
        """
        found: set[tuple[str, int]] = set()
        for chunk in _chunks(jobs):
            keys = {"ids": [job.id for job in chunk], "since": min(job.enqueued_at for job in chunk)}
            rows = self._execute(self._statements().stored_results, keys)
            found.update((row.id, row.enqueued_at) for row in rows if row.state == State.PENDING)
        return [job for job in jobs if (job.id, job.enqueued_at) in found]

    def _statements(self, *, with_origin: bool = False) -> Statements:
        return Statements.of(self.connection.dialect.name, self._name, with_origin=with_origin)

    def _execute(self, statement: Executable, values: Any) -> Any:
        with explained(self._name, lent=True), _aborted_explained():
            return self.connection.execute(statement, values, execution_options=connection_options(self.connection))


@contextmanager
def _aborted_explained() -> Iterator[None]:
    try:
        yield
    except DBAPIError as error:
        if sqlstate(error) == _ABORTED:
            raise PoisonedTransactionError from error
        raise


def _chunks(jobs: Iterable[NewJob]) -> Iterator[list[NewJob]]:
    left = iter(jobs)
    while chunk := list(islice(left, _CHUNK)):
        yield chunk

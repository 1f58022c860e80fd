"""``Ledger``: the code that reads and writes job rows.

1. `add`, `add_in_commit` and `reserve` write in the caller's transaction: the job exists if and only if that
   transaction commits.
2. `mark_done` and `mark_done_in_commit` write in the job's own transaction, as its last statement: the effects and the
   row are committed together. `mark_all_done` does so for the jobs of a chunk.
3. `complete` writes the final rows of other jobs, in a transaction of its own.
4. The relay reads pending rows and writes none, as a running job may be about to set its row done.
5. What an administrator does with rows is in :mod:`worker.ledger.admin`.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Dialect, Executable, text
from sqlalchemy.exc import DBAPIError

from db import AsyncSession, default_database
from db.engine.closing import can_close
from db.engine.guards import may_be_read_only, swallowed_error
from db.errors import PoisonedTransactionError
from db.scope import scope
from db.session.classes import only_connection
from db.session.owned_session import OwnedSession
from db.sessions import independent
from db.transient import sqlstate
from worker.errors import LedgerBusyError
from worker.ledger.batches import batches
from worker.ledger.execute import AnySession, DriverStatement, execute, execute_here, run
from worker.ledger.lock_wait import LockWait
from worker.ledger.rows import ORIGIN, FinalRow, IdRange, RelayRow, StoredResult, has_origin, parameters
from worker.ledger.schema_check import explain, explained, read_only
from worker.ledger.statements import CHUNK_FIELDS, COMPLETED_BEFORE, Statements, range_parameters
from worker.ledger.table import NAME, State
from worker.new_job import NewJob

_AT_ONCE = 8 * 1024 * 1024  # bytes of payloads in one batch
_RANGES = 500  # ranges of ids in one statement, which takes PostgreSQL some 10 ms
_FEW = 8  # rows that are sent with the COMMIT, each by a statement of its own
_MANY = 50  # rows from which on arrays cost less than a message for each row
_LATEST = 2**63 - 1  # milliseconds since the epoch: the largest value of the column
_WRITE_STATE = text("SELECT current_setting('transaction_read_only')::bool, txid_current_if_assigned() IS NOT NULL")

Key = TypeVar("Key", bound=tuple[str, int])


class NothingWrittenError(Exception):
    """The transaction is read-only and has no effects, so it cannot write its job's row in it and needs none."""


class RowIsFinalError(Exception):
    """The job's row is final already, so the transaction was not committed."""


class Ledger:
    """The job rows of the default database.

    Args:
        name: the name of the table, with its schema if it has one (default: ``tandem_jobs``).
        keep_arguments: whether rows keep their payloads when they are set done (default: no).
    """

    def __init__(self, name: str = NAME, *, keep_arguments: bool = False) -> None:
        self.name = name
        self.keep_arguments = keep_arguments
        self._for_drivers: WeakKeyDictionary[Dialect, dict[Executable, DriverStatement]] = WeakKeyDictionary()

    async def add(self, session: AnySession, jobs: Sequence[NewJob]) -> None:
        """Write the jobs' pending rows in the session's transaction, all in one statement.

        Raises:
            LedgerError: there is no such table.
        """
        with_origin = has_origin(jobs)
        statements = self._of(session, with_origin=with_origin)
        values = [parameters(job, with_origin=with_origin) for job in jobs]
        with explained(self.name, lent=True):
            if statements.add_all is None or len(jobs) < _MANY:
                await execute(session, statements.add, values)
            else:
                await execute(session, statements.add_all, _arrays(values))

    async def add_in_commit(self, session: AnySession, jobs: Sequence[NewJob]) -> None:
        """Write the jobs' pending rows as `add`; those of a few jobs in one message with the COMMIT.

        Call it last before the COMMIT. Raises as `add`.
        """
        with_origin = has_origin(jobs)
        closing = self._closing(session, "add", with_origin=with_origin) if len(jobs) <= _FEW else None
        if closing is None:
            await self.add(session, jobs)
            return
        statement, connection = closing
        values = [parameters(job, with_origin=with_origin) for job in jobs]
        left = [each for each in values if not statement.close(connection, each)]
        with explained(self.name, lent=True):
            for each in left:
                await run(session, partial(_write, statement, connection, each))

    async def reserve(self, session: AnySession, job: NewJob) -> bool:
        """Write the job's pending row, unless its id is pending already.

        Waits for another transaction that is about to write a row of this id.

        Returns:
            Whether the row was written.

        Raises:
            LedgerError: there is no such table.
        """
        with_origin = has_origin([job])
        statement = self._of(session, with_origin=with_origin).reserve
        with explained(self.name, lent=True):
            written = await execute(session, statement, parameters(job, with_origin=with_origin))
        return bool(written.rowcount)

    async def mark_done(self, session: AnySession, row: FinalRow) -> StoredResult | None:
        """Set a job's row done in the session's transaction.

        Returns:
            None, or the stored result if another attempt has completed the row already.

        Raises:
            NothingWrittenError: the transaction is read-only and has no effects, so it needs no row.
            LedgerBusyError: another transaction holds the row, or the whole table, or has just deleted the row.
            LedgerError: the transaction may not write the row: it has become read-only, or its role lacks the right.
            PoisonedTransactionError: an earlier error, which the task caught, has aborted the transaction.
        """
        wait = LockWait(session, self.name, [row])
        if await wait.limit(run(session, partial(self._mark_done, row, wait))):
            return None
        stored = await self.stored_result(session, row)
        if stored is None:
            raise LedgerBusyError(f"the row of job {row.id} in {self.name} was deleted while it was read")
        return stored

    async def mark_done_in_commit(self, session: AsyncSession, row: FinalRow) -> bool:
        """Set a job's row done as `mark_done`, but in one message with the COMMIT of the session's transaction.

        If the row is final already, the COMMIT fails. `why_not_committed` explains its errors.

        Returns:
            Whether the COMMIT will do so. If not, nothing has happened: call `mark_done`.

        Raises:
            DBAPIError: as the COMMIT. The first transaction of a connection runs the statement at once.
            LedgerBusyError: likewise.
        """
        with_origin = has_origin([row])
        closing = self._closing(session, "complete_or_fail", with_origin=with_origin)
        if closing is None:
            return False
        statement, connection = closing
        values = parameters(row, with_origin=with_origin)
        if not statement.close(connection, values):
            wait = LockWait(session, self.name, [row])
            wait.connection = connection
            await wait.limit(run(session, partial(_write, statement, connection, values)))
        return True

    async def mark_all_done(self, session: AnySession, rows: Sequence[FinalRow]) -> None:
        """Set the rows of many jobs done in the session's transaction, in one statement.

        Raises:
            RowIsFinalError: one of them is final already, so the transaction must be rolled back.
            LedgerBusyError: another transaction holds one of the rows, or the whole table.
        """
        wait = LockWait(session, self.name, rows)
        written = await wait.limit(run(session, partial(self._mark_all_done, rows, wait)))
        if written != len(rows):
            raise RowIsFinalError(f"{len(rows) - written} of {len(rows)} rows in {self.name} are final already")

    def why_not_committed(self, error: DBAPIError) -> Exception | None:
        """The error that explains why a COMMIT with `mark_done_in_commit` has failed. None if `error` itself does.

        Returns:
            `RowIsFinalError`, `LedgerBusyError`, `LedgerError` or `PoisonedTransactionError`.
        """
        if COMPLETED_BEFORE in str(error.orig):
            return RowIsFinalError(f"the row in {self.name} is final already")
        return self._explained(error)

    async def was_done(self, row: FinalRow) -> StoredResult | None:
        """Find out whether a transaction that set this row done was committed, if its COMMIT got no answer.

        Writes the row on another connection, which waits for the old backend to end, and rolls that back.

        Returns:
            The stored result if that transaction was committed, else None.

        Raises:
            LedgerBusyError: the old backend has not ended yet.
        """
        async with independent(default_database()) as session:
            small = row._replace(payload=None, result=None)  # as it is rolled back
            return await self.mark_done(session, small)

    async def complete(self, rows: Sequence[FinalRow]) -> list[StoredResult]:
        """Write the final rows of jobs, in a transaction of its own.

        Returns:
            For each row, the stored result. It differs from the row if the job was completed before.

        Raises:
            LedgerBusyError: another transaction holds one of the rows, or the whole table.
        """
        async with scope() as work:
            session = await work.session(default_database())
            statements = self._of(session)
            wait = LockWait(session, self.name, rows)
            written = await wait.limit(run(session, partial(self._complete, rows, wait)))
            if len(rows) == written == 1:
                return [StoredResult(row.state, row.result) for row in rows]
            keys = [(row.id, row.enqueued_at) for row in rows]
            parameters = {"ids": [job_id for job_id, _ in keys], "since": min(moment for _, moment in keys)}
            found = await execute(session, statements.stored_results, parameters)
            stored = {(each.id, each.enqueued_at): StoredResult(State(each.state), each.result) for each in found}
        return [stored[key] for key in keys]

    async def stored_result(self, session: AnySession, job: FinalRow | NewJob | RelayRow) -> StoredResult | None:
        """The state and result of a job. None if the ledger has no row of it."""
        parameters = {"id": job.id, "enqueued_at": job.enqueued_at}
        row = await self._first(session, self._of(session).stored_result, parameters)
        return None if row is None else StoredResult(State(row["state"]), row["result"])

    async def look_up(self, job_id: str, enqueued_at: int) -> StoredResult | None:
        """Read the state and result of a job, in a transaction of its own. None if the ledger has no row of it."""
        async with scope() as work:
            session = await work.session(default_database())
            parameters = {"id": job_id, "enqueued_at": enqueued_at}
            row = await self._first(session, self._of(session).stored_result, parameters)
        return None if row is None else StoredResult(State(row["state"]), row["result"])

    async def latest(self, job_id: str, enqueued_at: int | None = None) -> Mapping[str, Any] | None:
        """The row of `job_id` that was enqueued at this time, or else last. A dict by column, or None."""
        async with scope() as work:
            session = await work.session(default_database())
            return await self._first(session, self._of(session).latest, {"id": job_id, **_between(enqueued_at)})

    async def pending(self, job_id: str) -> RelayRow | None:
        """The pending row of `job_id`, or None."""
        async with scope() as work:
            session = await work.session(default_database())
            row = await self._first(session, self._of(session).pending, {"id": job_id})
        return None if row is None else RelayRow(**row)

    async def abort(self, job_id: str, enqueued_at: int | None = None) -> bool:
        """Set the pending row of `job_id` aborted, so that it is not published any more.

        Args:
            enqueued_at: abort only a row that was enqueued at this time.

        Returns:
            Whether there was such a row.
        """
        async with scope() as work:
            session = await work.session(default_database())
            parameters = {"of_id": job_id, **_between(enqueued_at)}
            return bool((await execute(session, self._of(session).abort, parameters)).rowcount)

    async def add_new(self, jobs: Sequence[NewJob]) -> list[NewJob]:
        """Write pending rows for the jobs that have no row yet.

        Returns:
            The jobs for which a row was written.
        """
        async with scope() as work:
            session = await work.session(default_database())
            return [job for job in jobs if await self.reserve(session, job)]

    async def last_enqueued(self, ranges: Sequence[IdRange]) -> list[int | None]:
        """The enqueue times of the last rows in ranges of ids, in milliseconds since the epoch. None if there is none.

        One statement for 500 ranges.
        """
        last: list[int | None] = []
        async with scope() as work:
            session = await work.session(default_database())
            statements, dialect = self._of(session), session.get_bind().dialect.name
            for begin in range(0, len(ranges), _RANGES):
                some = ranges[begin : begin + _RANGES]
                found = await execute(session, statements.last_enqueued, range_parameters(dialect, some))
                by_position = {row.position: row.enqueued_at for row in found}
                last += [by_position.get(position) for position in range(len(some))]
        return last

    async def due(self, after: tuple[int, str], limit: int) -> list[tuple[int, str, int, str]]:
        """Up to `limit` pending rows that the relay has to check, after the row with that time and id.

        Returns:
            For each row the time (milliseconds since the epoch) from which on it is checked, its id, its enqueue time
            and its queue.
        """
        async with scope() as work:
            session = await work.session(default_database())
            after_time, after_id = after
            parameters = {"after_time": after_time, "after_id": after_id, "limit": limit}
            found = await execute(session, self._of(session).due, parameters)
            return [(row.check_at, row.id, row.enqueued_at, row.queue) for row in found]

    async def unpublished(self, keys: Iterable[tuple[str, int]]) -> list[RelayRow]:
        """The rows with these ids and enqueue times, without those that are not pending any more or are locked."""
        wanted = set(keys)
        async with scope() as work:
            session = await work.session(default_database())
            found = await execute(session, self._of(session).unpublished, {"ids": [job_id for job_id, _ in wanted]})
            return [RelayRow(**row) for row in found.mappings() if (row["id"], row["enqueued_at"]) in wanted]

    async def in_batches(self, keys: Sequence[Key], most: int) -> list[list[Key]]:
        """Split rows, given by id and enqueue time, into batches of up to `most` rows that can be read at once."""
        async with scope() as work:
            session = await work.session(default_database())
            found = await execute(session, self._of(session).sizes, {"ids": [job_id for job_id, _ in keys]})
            sizes = {(row.id, row.enqueued_at): row.size or 0 for row in found}
        return [*batches(keys, lambda key: sizes.get(key, 0), most=most, most_bytes=_AT_ONCE)]

    async def pending_after(self, job_id: str, queues: Sequence[str], limit: int) -> list[tuple[str, int, str]]:
        """Up to `limit` pending rows of `queues` with ids after `job_id`: id, enqueue time and queue of each."""
        async with scope() as work:
            session = await work.session(default_database())
            parameters = {"after": job_id, "queues": list(queues), "limit": limit}
            found = await execute(session, self._of(session).pending_after, parameters)
            return [(row.id, row.enqueued_at, row.queue) for row in found]

    async def pending_at(self, permille: int) -> str:
        """The id of the pending row that has this share of all pending ids before it. "" if there is none.

        Counts the pending rows in their index, which takes a small part of the time of reading them.

        Args:
            permille: the share, from 0 to 999 thousandths.
        """
        async with scope() as work:
            session = await work.session(default_database())
            row = await self._first(session, self._of(session).pending_at, {"permille": permille})
        return "" if row is None else str(row["id"])

    async def prune(self, keep: int, limit: int, after: int = 0) -> tuple[int, int]:
        """Delete up to `limit` rows that became final more than `keep` milliseconds ago, the oldest first.

        Failed rows stay, as they may be retried. Rows that another transaction has locked are skipped.

        Args:
            after: delete only rows that became final at this time or later, in milliseconds since the epoch. So a batch
                does not read past the index entries of the batches before it, which stay until the next vacuum.

        Returns:
            The number of deleted rows, and the `after` for the next batch.
        """
        async with scope() as work:
            session = await work.session(default_database())
            parameters = {"keep": keep, "limit": limit, "after": after}
            deleted = (await execute(session, self._of(session).prune, parameters)).scalars().all()
            return len(deleted), max(deleted, default=after)

    def _of(self, session: AnySession | OwnedSession, *, with_origin: bool = False) -> Statements:
        dialect = session.get_bind().dialect.name
        return Statements.of(dialect, self.name, with_origin=with_origin, keep_arguments=self.keep_arguments)

    def _complete(self, rows: Sequence[FinalRow], wait: LockWait, session: OwnedSession) -> int:
        with_origin = has_origin(rows)
        statement = self._of(session, with_origin=with_origin).complete
        wait.connection = session.connection(bind_arguments={"clause": statement})
        values = [parameters(row, with_origin=with_origin) for row in rows]
        return int(execute_here(session, statement, values).rowcount)

    def _mark_done(self, row: FinalRow, wait: LockWait, session: OwnedSession) -> int:
        with_origin = has_origin([row])
        statement = self._of(session, with_origin=with_origin).complete
        values = parameters(row, with_origin=with_origin)
        # The clause, as some sessions have an engine for each table, or one for writes.
        connection = wait.connection = session.connection(bind_arguments={"clause": statement})
        try:
            if may_be_read_only(connection):
                self._refuse_read_only(connection)
            if DriverStatement.is_equivalent(session, connection):
                return self._for_driver(connection.dialect, statement).write(connection, values)
            return int(execute_here(session, statement, values).rowcount)
        except DBAPIError as error:
            explained = self._explained(error, connection)
            if explained is None:
                raise
            raise explained from explained.__cause__

    def _mark_all_done(self, rows: Sequence[FinalRow], wait: LockWait, session: OwnedSession) -> int:
        with_origin = has_origin(rows)
        statements = self._of(session, with_origin=with_origin)
        clause = statements.complete
        wait.connection = session.connection(bind_arguments={"clause": clause})
        given = [parameters(row, with_origin=with_origin) for row in rows]
        if statements.complete_all is None:
            return sum(int(execute_here(session, clause, one).rowcount) for one in given)
        fields = (*CHUNK_FIELDS, *ORIGIN) if with_origin else CHUNK_FIELDS
        arrays = _arrays([{field: one[field] for field in fields} for one in given])
        return int(execute_here(session, statements.complete_all, arrays).rowcount)

    def _closing(
        self, session: AnySession, name: str, *, with_origin: bool
    ) -> tuple[DriverStatement, Connection] | None:
        """A statement that may be sent with the COMMIT of the session's transaction, and its connection. Else None."""
        if not isinstance(session, AsyncSession):
            return None
        statement: Executable | None = getattr(self._of(session, with_origin=with_origin), name)
        connection = None if statement is None else only_connection(session.sync_session, statement)
        if statement is None or connection is None:
            return None
        is_equivalent = DriverStatement.is_equivalent(session.sync_session, connection)
        if not is_equivalent or not can_close(connection) or may_be_read_only(connection):
            return None
        return self._for_driver(connection.dialect, statement), connection

    def _refuse_read_only(self, connection: Connection) -> None:
        is_read_only, has_written = connection.execute(_WRITE_STATE).one()
        if is_read_only:
            raise read_only(self.name) if has_written else NothingWrittenError

    def _explained(self, error: DBAPIError, connection: Connection | None = None) -> Exception | None:
        """The error that explains what is wrong with the job's transaction, or None if `error` itself does."""
        match sqlstate(error):
            case "25P02":  # an earlier error has aborted it
                aborted = PoisonedTransactionError()
                aborted.__cause__ = None if connection is None else swallowed_error(connection)
                return aborted
            case "55P03":  # by the limit of a closing statement, or the job's own lock_timeout
                return LedgerBusyError(f"another attempt of this job holds its row in {self.name}")
        return explain(error, self.name, lent=True)

    def _for_driver(self, dialect: Dialect, statement: Executable) -> DriverStatement:
        compiled = self._for_drivers.setdefault(dialect, {})
        if statement not in compiled:
            compiled[statement] = DriverStatement.of(statement, dialect)
        return compiled[statement]

    async def _first(
        self, session: AnySession, statement: Executable, parameters: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        row = (await execute(session, statement, parameters)).mappings().first()
        return None if row is None else dict(row)


def _write(statement: DriverStatement, connection: Connection, values: Mapping[str, Any], _: OwnedSession) -> None:
    statement.write(connection, values)


def _arrays(values: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    return {name: [each[name] for each in values] for name in values[0]}


def _between(enqueued_at: int | None) -> dict[str, int]:
    """The range of enqueue times: only this one, or any."""
    return {"since": 0, "until": _LATEST} if enqueued_at is None else {"since": enqueued_at, "until": enqueued_at}

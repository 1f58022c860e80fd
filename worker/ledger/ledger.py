"""``Ledger``: the only code that writes job rows.

1. `add` and `reserve` write in the transaction of whoever enqueues: the job exists if and only if that commits.
2. `mark_done` writes in the job's own transaction, as its last statement: effects and the row are one.
3. `complete` writes, in a transaction of its own, how other jobs have ended.
4. The relay reads what is pending, and writes none of it: a job may have begun that is to set its row done.
5. What people do with rows is :mod:`worker.ledger.admin`.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Dialect, Executable, text
from sqlalchemy.exc import DBAPIError

from db import default_database
from db.engine.guards import may_be_read_only, swallowed_error
from db.errors import PoisonedTransactionError
from db.scope import scope
from db.session.owned_session import OwnedSession
from db.sessions import independent
from db.transient import sqlstate
from worker.errors import LedgerBusyError
from worker.ledger.batches import batches
from worker.ledger.execute import AnySession, DriverStatement, execute, execute_here, run
from worker.ledger.lock_wait import LockWait
from worker.ledger.rows import FinalRow, RelayRow, StoredResult
from worker.ledger.schema_check import explain, explained, read_only
from worker.ledger.statements import Statements
from worker.ledger.table import NAME, State
from worker.new_job import NewJob

_AT_ONCE = 8 * 1024 * 1024  # bytes of payloads that are read at once
_LATEST = 2**63 - 1  # milliseconds since the epoch: the largest that a column holds
_STANDING = text("SELECT current_setting('transaction_read_only')::bool, txid_current_if_assigned() IS NOT NULL")

Key = TypeVar("Key", bound=tuple[str, int])


class NothingWrittenError(Exception):
    """A read-only transaction cannot write its job's row, and needs none: it has no effects."""


class Ledger:
    """The job rows of the default database.

    Args:
        name: of the table, with its schema if it has one (default: ``tandem_jobs``).
    """

    def __init__(self, name: str = NAME) -> None:
        self.name = name
        # What each job says to the database.
        self._complete_of: WeakKeyDictionary[Dialect, DriverStatement] = WeakKeyDictionary()

    async def add(self, session: AnySession, jobs: Sequence[NewJob]) -> None:
        """Write the jobs' pending rows in the session's transaction, all in one statement.

        Raises:
            LedgerError: there is no such table.
        """
        with explained(self.name, lent=True):
            await execute(session, self._of(session).add, [job._asdict() for job in jobs])

    async def reserve(self, session: AnySession, job: NewJob) -> bool:
        """Write the job's pending row unless its id is pending already; whether it was written.

        Waits for another transaction that is about to write one of this id.

        Raises:
            LedgerError: there is no such table.
        """
        with explained(self.name, lent=True):
            written = await execute(session, self._of(session).reserve, job._asdict())
        return bool(written.rowcount)

    async def mark_done(self, session: AnySession, ending: FinalRow) -> StoredResult | None:
        """Set a row done in the session's transaction; if another attempt has completed it already, how.

        Raises:
            NothingWrittenError: the transaction is read-only, and has no effects that a row would have to be one with.
            LedgerBusyError: another transaction holds the row, or the whole table, or has just deleted the row.
            LedgerError: the transaction may not write the row: it is read-only by now, or in a role without the right.
            PoisonedTransactionError: an earlier error, which was swallowed, has aborted the transaction.
        """
        wait = LockWait(session, self.name, [ending])
        if await wait.limit(run(session, partial(self._mark, ending, wait))):
            return None
        known = await self.known(session, ending)
        if known is None:
            raise LedgerBusyError(f"the row of this job in {self.name} went away while it was read")
        return known

    async def was_done(self, ending: FinalRow) -> StoredResult | None:
        """Whether a transaction of unknown fate, which set this row done, was committed: then what it wrote.

        Tries to write the row on another connection, which waits for the old backend to end, and rolls that back.

        Raises:
            LedgerBusyError: the old backend has not ended yet.
        """
        async with independent(default_database()) as session:
            return await self.mark_done(session, ending._replace(result=None))  # it is rolled back: let it be small

    async def complete(self, endings: Sequence[FinalRow]) -> list[StoredResult]:
        """Write how jobs have ended, in a transaction of its own.

        Returns:
            Of each, how it stands now: not as asked for, where it was completed before.

        Raises:
            LedgerBusyError: another transaction holds one of the rows, or the whole table.
        """
        async with scope() as work:
            session = await work.session(default_database())
            statements = self._of(session)
            wait = LockWait(session, self.name, endings)
            written = await wait.limit(run(session, partial(self._complete, endings, wait)))
            if len(endings) == written == 1:
                return [StoredResult(ending.state, ending.result) for ending in endings]
            keys = [(ending.id, ending.enqueued_at) for ending in endings]
            parameters = {"ids": [job_id for job_id, _ in keys], "since": min(moment for _, moment in keys)}
            standing = await execute(session, statements.standing, parameters)
            known = {(row.id, row.enqueued_at): StoredResult(State(row.state), row.result) for row in standing}
        return [known[key] for key in keys]

    async def known(self, session: AnySession, job: FinalRow | NewJob | RelayRow) -> StoredResult | None:
        """What is known of a job."""
        row = await self._first(session, self._of(session).known, {"id": job.id, "enqueued_at": job.enqueued_at})
        return None if row is None else StoredResult(State(row["state"]), row["result"])

    async def look_up(self, job_id: str, enqueued_at: int) -> StoredResult | None:
        """`known`, in a transaction of its own."""
        async with scope() as work:
            session = await work.session(default_database())
            row = await self._first(session, self._of(session).known, {"id": job_id, "enqueued_at": enqueued_at})
        return None if row is None else StoredResult(State(row["state"]), row["result"])

    async def latest(self, job_id: str, enqueued_at: int | None = None) -> Mapping[str, Any] | None:
        """The row of `job_id` that was enqueued last, or at this time, by column."""
        async with scope() as work:
            session = await work.session(default_database())
            return await self._first(session, self._of(session).latest, {"id": job_id, **_between(enqueued_at)})

    async def pending(self, job_id: str) -> RelayRow | None:
        """The pending row of `job_id`."""
        async with scope() as work:
            session = await work.session(default_database())
            row = await self._first(session, self._of(session).pending, {"id": job_id})
        return None if row is None else RelayRow(**row)

    async def abort(self, job_id: str, enqueued_at: int | None = None) -> bool:
        """Set the pending row of `job_id` aborted, so that nobody will publish it; whether there was one.

        Args:
            enqueued_at: only the row that was enqueued at this time.
        """
        async with scope() as work:
            session = await work.session(default_database())
            parameters = {"of_id": job_id, **_between(enqueued_at)}
            return bool((await execute(session, self._of(session).abort, parameters)).rowcount)

    async def add_new(self, jobs: Sequence[NewJob]) -> list[NewJob]:
        """Write the pending rows of those jobs whose id and enqueue time are not known yet; which they were."""
        async with scope() as work:
            session = await work.session(default_database())
            return [job for job in jobs if await self.reserve(session, job)]

    async def last_enqueued(self, task: str, prefix: str) -> int | None:
        """The enqueue time of the last of those rows of a task whose ids are `prefix` and a number, all of one length.

        In milliseconds since the epoch.
        """
        async with scope() as work:
            session = await work.session(default_database())
            parameters = {"task": task, "first": f"{prefix}0", "end": f"{prefix}:"}  # the sign after 9
            row = await self._first(session, self._of(session).last_enqueued, parameters)
        last: int | None = None if row is None else row["enqueued_at"]
        return last

    async def due(self, after: tuple[int, str], limit: int) -> list[tuple[int, str, int, str]]:
        """Up to `limit` pending rows to look after, that come after one of that time and id.

        Returns:
            Of each the time (milliseconds) from which on it is looked after, its id, enqueue time and queue.
        """
        async with scope() as work:
            session = await work.session(default_database())
            after_time, after_id = after
            parameters = {"after_time": after_time, "after_id": after_id, "limit": limit}
            found = await execute(session, self._of(session).due, parameters)
            return [(row.check_at, row.id, row.enqueued_at, row.queue) for row in found]

    async def unpublished(self, keys: Iterable[tuple[str, int]]) -> list[RelayRow]:
        """Those of these rows, by id and enqueue time, that are pending still, and that nobody is about to write."""
        wanted = set(keys)
        async with scope() as work:
            session = await work.session(default_database())
            found = await execute(session, self._of(session).unpublished, {"ids": [job_id for job_id, _ in wanted]})
            return [RelayRow(**row) for row in found.mappings() if (row["id"], row["enqueued_at"]) in wanted]

    async def in_batches(self, keys: Sequence[Key], most: int) -> list[list[Key]]:
        """These rows, by id and enqueue time, up to `most` in a batch, and so that a batch can be read at once."""
        async with scope() as work:
            session = await work.session(default_database())
            found = await execute(session, self._of(session).sizes, {"ids": [job_id for job_id, _ in keys]})
            sizes = {(row.id, row.enqueued_at): row.size or 0 for row in found}
        return [*batches(keys, lambda key: sizes.get(key, 0), most=most, most_bytes=_AT_ONCE)]

    async def pending_after(self, job_id: str, queues: Sequence[str], limit: int) -> list[tuple[str, int, str]]:
        """Up to `limit` pending rows of `queues` whose ids come after `job_id`, as id, enqueue time and queue."""
        async with scope() as work:
            session = await work.session(default_database())
            parameters = {"after": job_id, "queues": list(queues), "limit": limit}
            found = await execute(session, self._of(session).pending_after, parameters)
            return [(row.id, row.enqueued_at, row.queue) for row in found]

    async def prune(self, keep: int, limit: int) -> int:
        """Delete up to `limit` rows that are over since `keep` milliseconds, the oldest first; how many there were.

        Failed ones stay, as they may be retried. Rows that somebody else holds are left to them.
        """
        async with scope() as work:
            session = await work.session(default_database())
            deleted = await execute(session, self._of(session).prune, {"keep": keep, "limit": limit})
            return int(deleted.rowcount)

    def _of(self, session: AnySession | OwnedSession) -> Statements:
        return Statements.of(session.get_bind().dialect.name, self.name)

    def _complete(self, endings: Sequence[FinalRow], wait: LockWait, session: OwnedSession) -> int:
        statement = self._of(session).complete
        wait.connection = session.connection(bind_arguments={"clause": statement})
        return int(execute_here(session, statement, [ending._asdict() for ending in endings]).rowcount)

    def _mark(self, ending: FinalRow, wait: LockWait, session: OwnedSession) -> int:
        statement = self._of(session).complete
        # The clause, as some sessions have another bind for each table, or for what writes.
        connection = wait.connection = session.connection(bind_arguments={"clause": statement})
        try:
            if may_be_read_only(connection):
                self._refuse_read_only(connection)
            if DriverStatement.does_the_same(session, connection):
                return self._in_words_of(connection.dialect, statement).write(connection, ending._asdict())
            return int(execute_here(session, statement, ending._asdict()).rowcount)
        except DBAPIError as error:
            meaning = self._meaning(error, connection)
            if meaning is None:
                raise
            raise meaning from meaning.__cause__

    def _refuse_read_only(self, connection: Connection) -> None:
        is_read_only, has_written = connection.execute(_STANDING).one()
        if is_read_only:
            raise read_only(self.name) if has_written else NothingWrittenError

    def _meaning(self, error: DBAPIError, connection: Connection) -> Exception | None:
        """What an error of the ledger's statement says of the job's transaction; None where it says so itself."""
        match sqlstate(error):
            case "25P02":  # an earlier error has aborted it
                aborted = PoisonedTransactionError()
                aborted.__cause__ = swallowed_error(connection)
                return aborted
            case "55P03":  # by a lock_timeout of the job's own
                return LedgerBusyError(f"another attempt of this job holds its row in {self.name}")
        return explain(error, self.name, lent=True)

    def _in_words_of(self, dialect: Dialect, statement: Executable) -> DriverStatement:
        complete = self._complete_of.get(dialect)
        if complete is None:
            complete = self._complete_of[dialect] = DriverStatement.of(statement, dialect)
        return complete

    async def _first(
        self, session: AnySession, statement: Executable, parameters: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        row = (await execute(session, statement, parameters)).mappings().first()
        return None if row is None else dict(row)


def _between(enqueued_at: int | None) -> dict[str, int]:
    """The enqueue times that are meant: this one, or any."""
    return {"since": 0, "until": _LATEST} if enqueued_at is None else {"since": enqueued_at, "until": enqueued_at}

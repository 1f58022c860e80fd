"""``Collector``: publish the jobs whose transactions are committed, as far as a test is concerned.

A test's own transaction is never committed. A commit of the code under test ends a savepoint inside of it, and then the
job's row can be read. So the row decides, as it does for a relay: a job that was rolled back has none.
"""

from sqlalchemy import Connection
from sqlalchemy.util.concurrency import greenlet_spawn

from db.database import given_default
from db.scope import open_scope
from worker.aio.background import Background
from worker.config import Config
from worker.errors import WorkerError
from worker.ledger import Ledger
from worker.ledger.connection import ConnectionLedger
from worker.ledger.default import default_ledger
from worker.new_job import NewJob
from worker.testing.memory_broker import Expected, Key, MemoryBroker

_AT_ONCE = 1000  # rows a statement

INSIDE_A_SCOPE = (
    "a scope is open here, and what it has enqueued does not exist before its COMMIT: leave the scope, and then ask "
    "for jobs"
)


class Collector:
    """Publishes the expected jobs of a `MemoryBroker` whose rows are pending."""

    def __init__(self, config: Config, broker: MemoryBroker) -> None:
        self._config = config
        self._broker = broker

    @property
    def ledger(self) -> Ledger | None:
        """The job rows. None: the project has no database here."""
        has_database = given_default() is not None or self._config.database_url is not None
        return default_ledger() if has_database else None

    async def collect(self) -> None:
        """Publish what is committed.

        Raises:
            WorkerError: a scope is open here.
        """
        expected = self._broker.expected
        if not expected:
            return
        refuse_inside_a_scope()
        background = Background()  # with a context of its own: a lent scope, too, is the test's
        try:
            self._broker.publish_expected(await background.start(self._found(expected)))
        finally:
            await background.close()

    async def _found(self, expected: list[Expected]) -> list[Expected]:
        """Those of the jobs whose rows are there, in the order in which they were enqueued."""
        ledger = self.ledger
        if ledger is None:
            return []
        own = {each.connection for each in expected if each.connection is not None}
        found = await self._in_scopes(ledger, [_key(each.job) for each in expected])
        for connection in own:
            jobs = [each.job for each in expected if each.connection is connection]
            found |= await greenlet_spawn(_on_connection, connection, ledger.name, jobs)
        return [each for each in expected if _key(each.job) in found]

    async def _in_scopes(self, ledger: Ledger, keys: list[Key]) -> set[Key]:
        found: set[Key] = set()
        for start in range(0, len(keys), _AT_ONCE):
            rows = await ledger.unpublished(keys[start : start + _AT_ONCE])
            found |= {(row.id, row.enqueued_at) for row in rows}
        return found


def _on_connection(connection: Connection, table: str, jobs: list[NewJob]) -> set[Key]:
    """The jobs whose rows are in a session's own transaction, which the test holds open, and in no open savepoint."""
    if connection.closed or connection.invalidated or connection.in_nested_transaction():
        return set()
    return {_key(job) for job in ConnectionLedger(connection, table).pending(jobs)}


def _key(job: NewJob) -> Key:
    return job.id, job.enqueued_at


def refuse_inside_a_scope() -> None:
    """Raise :class:`WorkerError` if a scope of the caller's own is open here."""
    scope = open_scope()
    if scope is not None and not scope.is_lent:
        raise WorkerError(INSIDE_A_SCOPE)

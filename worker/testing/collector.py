"""``Collector``: publish the jobs whose transactions are committed, as far as a test is concerned.

A test's own transaction is never committed. A commit of the code under test ends a savepoint inside of it, and then the
job's row can be read. So the row decides, as it does for a relay: a job that was rolled back has none.
"""

from db.database import given_default
from db.scope import open_scope
from worker.aio.background import Background
from worker.config import Config
from worker.errors import WorkerError
from worker.ledger import Ledger
from worker.ledger.default import default_ledger
from worker.testing.memory_broker import Key, MemoryBroker

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
        if not self._broker.expected:
            return
        refuse_inside_a_scope()
        background = Background()  # with a context of its own: a lent scope, too, is the test's
        try:
            self._broker.publish_expected(await background.start(self._committed(self._broker.expected)))
        finally:
            await background.close()

    async def _committed(self, keys: list[Key]) -> list[Key]:
        ledger = self.ledger
        if ledger is None:
            return []
        found: list[Key] = []
        for start in range(0, len(keys), _AT_ONCE):
            rows = await ledger.unpublished(keys[start : start + _AT_ONCE])
            found += [(row.id, row.enqueued_at) for row in rows]
        order = {key: position for position, key in enumerate(keys)}
        return sorted(found, key=order.__getitem__)


def refuse_inside_a_scope() -> None:
    """Raise :class:`WorkerError` if a scope of the caller's own is open here."""
    scope = open_scope()
    if scope is not None and not scope.is_lent:
        raise WorkerError(INSIDE_A_SCOPE)

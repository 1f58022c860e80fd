"""``Deployment``: the servers and queues that a person looks at and acts on."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from db.database import given_default
from worker.broker.broker import Broker, default_broker
from worker.config import Config
from worker.ledger import Ledger
from worker.ledger.default import default_ledger


@dataclass(frozen=True, slots=True)
class Deployment:
    """One Redis, the ledger beside it, and the names of the queues."""

    broker: Broker
    ledger: Ledger | None
    """None: this process has no default database. Then pauses are kept in Redis alone, and actions are only logged."""
    queues: tuple[str, ...]
    """The queues that are listed and searched, the most urgent first."""

    @classmethod
    def of_process(cls, config: Config | None = None) -> "Deployment":
        """The default broker and the default ledger of this process, with the queues of its settings."""
        config = config or Config.load()
        has_database = given_default() is not None or config.database_url is not None
        return cls(default_broker(), default_ledger() if has_database else None, config.queue_names)

    def with_queues(self, names: Iterable[str]) -> "Deployment":
        """The same servers, with these queues besides."""
        return replace(self, queues=tuple(dict.fromkeys([*self.queues, *names])))

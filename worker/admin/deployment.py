"""``Deployment``: the servers and queues that a person looks at and acts on."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from db.database import given_default
from worker.admin.live_queues import LiveQueues
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
    named: tuple[str, ...]
    """The queues that the settings or the tasks name, the most urgent first."""
    live: LiveQueues | None = None
    """The queues that workers serve. None: only the named ones are of interest."""

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that are listed and searched: the named ones, then those that workers serve besides."""
        return self.named if self.live is None else tuple(dict.fromkeys([*self.named, *self.live.names]))

    @classmethod
    def of_process(cls, config: Config | None = None) -> "Deployment":
        """The default broker and the default ledger of this process, with the queues of its settings.

        If ``WORKER_QUEUES`` does not say which queues there are, those that workers serve are among them.
        """
        config = config or Config.load()
        has_database = given_default() is not None or config.database_url is not None
        broker, ledger = default_broker(), default_ledger() if has_database else None
        return cls(broker, ledger, config.queue_names, LiveQueues(broker) if config.queues is None else None)

    def with_queues(self, names: Iterable[str]) -> "Deployment":
        """The same servers, with these queues besides."""
        return replace(self, named=tuple(dict.fromkeys([*self.named, *names])))

    async def refresh(self) -> None:
        """Find out which queues workers serve now."""
        if self.live is not None:
            await self.live.refresh()

"""``BulkSteps``: the single steps of a bulk action: one batch, its progress in Redis, its audit row."""

import contextlib
from collections.abc import Sequence

from worker.admin.bulk_progress import BulkAction, BulkProgress
from worker.admin.deployment import Deployment
from worker.broker.bulk_runs import BulkRuns
from worker.broker.errors import RedisError
from worker.ledger import Ledger
from worker.ledger.admin import JobAdmin, Key, Rejection
from worker.ledger.audit import Audit, AuditRow
from worker.ledger.search import JobSearch


class BulkSteps:
    """What a bulk action does on the servers of a deployment.

    Args:
        deployment: the servers.
        ledger: its ledger.
        accept_pickle: whether jobs that an arq producer has pickled may be read, to retry them.
    """

    def __init__(self, deployment: Deployment, ledger: Ledger, *, accept_pickle: bool) -> None:
        self._broker = deployment.broker
        self._runs = BulkRuns(deployment.broker.connections)
        self._audit = Audit(ledger.name)
        self._accept_pickle = accept_pickle
        self.admin = JobAdmin(ledger.name)
        self.search = JobSearch(ledger.name)

    async def save(self, progress: BulkProgress) -> bool:
        """Write how far an action has come. Returns whether it may go on."""
        return await self._runs.save(progress.id, progress.model_dump_json().encode())

    async def act(self, action: BulkAction, keys: Sequence[Key]) -> list[Rejection]:
        """Retry or discard one batch."""
        if action is BulkAction.DISCARD:
            return await self.admin.discard(keys)
        retried, rejections = await self.admin.retry(keys, accept_pickle=self._accept_pickle)
        # If Redis does not take them, the relay of a worker publishes them within a few seconds.
        with contextlib.suppress(RedisError, OSError):
            await self._broker.publish(retried)
        return rejections

    async def begin_audit(self, progress: BulkProgress) -> int:
        """Write the audit row of a bulk action. Its id."""
        detail = {"jobs": progress.total, "pace": progress.pace, "one_first": progress.one_first, "run": progress.id}
        action = f"job.{progress.action}_many"
        return await self._audit.begin(AuditRow(progress.actor, action, progress.selection.subject, detail))

    async def end_audit(self, row_id: int, outcome: str) -> None:
        """Write what came of it."""
        await self._audit.set_outcome(row_id, outcome)

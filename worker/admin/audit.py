"""``AuditLog``: the actions of people, as rows in the ledger's database."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.admin.deployment import Deployment


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One action of a person."""

    id: int
    at: datetime
    actor: str
    action: str
    """What was done: ``queue.pause``, ``job.retry``, ``worker.stop``, ..."""
    subject: str
    """To which queue, job, worker or task it was done."""
    detail: Mapping[str, Any]
    """More about the action, as JSON values by name: ``until``, the number of jobs, their ids."""
    outcome: str | None
    """What came of it. None: the process ended before it knew."""


class AuditLog:
    """The audit rows of a deployment. They are never deleted automatically.

    Args:
        deployment: where the rows are (default: the servers of this process).
    """

    def __init__(self, deployment: Deployment | None = None) -> None:
        self._deployment = deployment or Deployment.of_process()

    async def read(
        self,
        *,
        before: int | None = None,
        limit: int = 50,
        actor: str | None = None,
        action: str | None = None,
        subject: str | None = None,
    ) -> list[AuditEntry]:
        """The latest actions first, up to `limit`. Empty if there is no ledger.

        Args:
            before: only entries before the one with this id: the last `id` of the page before.
            actor, action, subject: only entries with exactly this value. ``job.`` as action means all on jobs.
        """
        raise NotImplementedError

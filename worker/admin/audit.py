"""``AuditLog``: the actions of people, as rows in the ledger's database; and ``Recorder``, which writes them."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from pydantic_core import from_json

from db import AsyncSession, Session, default_database
from db.scope import scope
from worker.admin.deployment import Deployment
from worker.context import from_milliseconds
from worker.ledger.audit import Audit, AuditRow

logger = logging.getLogger("worker")

T = TypeVar("T")


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
        if self._deployment.ledger is None:
            return []
        audit = Audit(self._deployment.ledger.name)
        rows = await audit.read(before=before, limit=limit, actor=actor, action=action, subject=subject)
        return [AuditEntry(**{**row, "at": from_milliseconds(row["at"]), "detail": _detail(row)}) for row in rows]


class Outcome:
    """What came of an action."""

    def __init__(self) -> None:
        self.text = "done"


class Recorder:
    """Writes audit rows. Without a ledger actions are only logged.

    Args:
        deployment: where the rows are.
    """

    def __init__(self, deployment: Deployment) -> None:
        self._audit = None if deployment.ledger is None else Audit(deployment.ledger.name)

    async def commit(self, row: AuditRow, effect: Callable[[AsyncSession | Session], Awaitable[T]]) -> T:
        """Call `effect` with a session, and commit what it writes together with the audit row."""
        assert self._audit is not None  # noqa: S101 - the caller has a ledger
        async with scope() as work:
            session = await work.session(default_database())
            result = await effect(session)
            await self._audit.add(session, row)
        _log(row, row.outcome or "")
        return result

    @asynccontextmanager
    async def around(self, row: AuditRow) -> AsyncIterator[Outcome]:
        """Commit the audit row before the block, and what came of the action after it.

        For an action whose effect is not in the database: the row is there even if the process dies in between.
        """
        outcome = Outcome()
        row_id = None if self._audit is None else await self._audit.begin(row)
        try:
            yield outcome
        except Exception as error:
            outcome.text = f"failed: {type(error).__name__}: {error}"
            raise
        finally:
            _log(row, outcome.text)
            if self._audit is not None and row_id is not None:
                await self._audit.set_outcome(row_id, outcome.text)


def _log(row: AuditRow, outcome: str) -> None:
    logger.info("%s: %s %s: %s", row.actor, row.action, row.subject, outcome)


def _detail(row: Mapping[str, Any]) -> dict[str, Any]:
    detail: dict[str, Any] = from_json(row["detail"])
    return detail

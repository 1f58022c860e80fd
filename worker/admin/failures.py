"""``Failures``: failed jobs in groups, and retrying or discarding many of them.

1. `FailureGroups` counts the groups: a group is a task and a kind of error (`kind_of`).
2. A bulk action is counted and confirmed first. It acts on the jobs that had failed by then, in batches (`BulkRun`).
3. It may retry one job first, and go on only if that one succeeds; and it may keep a pace.
4. Its progress is in Redis, so every process can show it, and ask it to stop.
"""

import secrets
import time

from worker.admin.bulk_progress import BulkAction, BulkProgress, Selection
from worker.admin.bulk_run import BulkRun
from worker.admin.bulk_steps import BulkSteps
from worker.admin.deployment import Deployment
from worker.admin.failure_groups import FailureGroup, FailureGroups, FailureOverview
from worker.aio.background import Background
from worker.broker.bulk_runs import BulkRuns
from worker.errors import LedgerError
from worker.ledger.search import JobSearch


class Failures:
    """The failed jobs of a deployment.

    Args:
        deployment: where they are (default: the servers of this process).
        background: where counts and bulk actions run (default: its own, which ends with the event loop).
        accept_pickle: whether jobs that an arq producer has pickled may be read, to retry them.
    """

    def __init__(
        self,
        deployment: Deployment | None = None,
        *,
        background: Background | None = None,
        accept_pickle: bool = False,
    ) -> None:
        deployment = deployment or Deployment.of_process()
        ledger = deployment.ledger
        self._background = background or Background()
        self._runs = BulkRuns(deployment.broker.connections)
        self._steps = None if ledger is None else BulkSteps(deployment, ledger, accept_pickle=accept_pickle)
        self.groups = FailureGroups(None if ledger is None else JobSearch(ledger.name), self._background)

    async def overview(self) -> FailureOverview:
        """The groups as far as they are counted. Starts a new count if the last one is old."""
        return await self.groups.overview()

    def group(self, task: str, kind: str) -> FailureGroup | None:
        """A group, as it was counted last."""
        return self.groups.group(task, kind)

    def count(self, selection: Selection) -> tuple[int, bool]:
        """How many jobs a selection has, by the last count, and whether there may be more."""
        return self.groups.count(selection.task, selection.kind, selection.queue)

    async def start(
        self,
        action: BulkAction,
        selection: Selection,
        *,
        actor: str,
        one_first: bool = False,
        pace: float | None = None,
    ) -> BulkProgress:
        """Begin a bulk action in this process, and return while it goes on.

        Args:
            one_first: retry the latest job first, and go on only once it has succeeded.
            pace: at most so many jobs a second.

        Raises:
            LedgerError: there is no ledger.
        """
        if self._steps is None:
            raise LedgerError("failed jobs are kept in the ledger, and this process has no default database")
        total, is_more = self.count(selection)
        progress = BulkProgress(
            id=secrets.token_urlsafe(9),
            action=action,
            actor=actor,
            selection=selection,
            total=total,
            total_is_more=is_more,
            pace=pace,
            one_first=one_first and action is BulkAction.RETRY,
            started_at=time.time_ns() // 1_000_000,
        )
        run = BulkRun(self._steps, progress, self.groups.forget)
        await run.begin()
        self._background.start(run.go_on())
        return run.progress

    async def progress(self, run_id: str) -> BulkProgress | None:
        """How far a bulk action has come, in whatever process. None if there is none of this id."""
        raw = await self._runs.read(run_id)
        return None if raw is None else BulkProgress.model_validate_json(raw)

    async def stop(self, run_id: str) -> None:
        """Ask a bulk action to stop after its present batch."""
        await self._runs.stop(run_id)

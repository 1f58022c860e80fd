"""Bulk actions on failed jobs."""

import asyncio
import time
from typing import Any

from tests.servers import Observer
from tests.worker.admin.failed_jobs import NOW, counted
from worker import Broker
from worker.admin.audit import AuditLog
from worker.admin.bulk_progress import BulkAction, BulkProgress, BulkState, Selection
from worker.admin.failures import Failures


async def ended(failures: Failures, run: BulkProgress) -> BulkProgress:
    """The last progress of a bulk action."""
    async with asyncio.timeout(60):
        while True:
            progress = await failures.progress(run.id)
            assert progress is not None
            if progress.state.is_over:
                return progress
            await asyncio.sleep(0.02)


async def states(postgres: Observer) -> dict[str, int]:
    rows = await postgres.fetch("SELECT state, count(*) FROM tandem_jobs GROUP BY state")
    return dict(map(tuple, rows))


class TestBulk:
    async def test_a_selection_is_retried_in_batches_and_written_down(
        self, failures: Failures, add: Any, postgres: Observer, broker: Broker
    ) -> None:
        await add("a", 1_200)
        await add("b", 7, error="KeyError: 'x'")
        await counted(failures)
        selection = Selection(task="send", kind="ValueError: order #", until=NOW)
        assert failures.count(selection) == (1_200, False)
        run = await failures.start(BulkAction.RETRY, selection, actor="ann")
        progress = await ended(failures, run)
        assert (progress.state, progress.done, progress.rejected) == (BulkState.DONE, 1_200, 0)
        assert await states(postgres) == {"pending": 1_200, "failed": 7}
        assert await broker.depth("mail") == 1_200
        (entry,) = await AuditLog().read()
        assert (entry.actor, entry.action, entry.subject) == ("ann", "job.retry_many", "send: ValueError: order #")
        assert entry.outcome == "done: 1,200 jobs"
        assert entry.detail["jobs"] == 1_200

    async def test_jobs_that_fail_later_are_not_meant(self, failures: Failures, add: Any, postgres: Observer) -> None:
        await add("a", 5)
        await add("b", 5, ended=NOW + 60_000)
        await counted(failures)
        await ended(failures, await failures.start(BulkAction.DISCARD, Selection(until=NOW), actor="ann"))
        assert await states(postgres) == {"discarded": 5, "failed": 5}

    async def test_the_rest_follows_when_the_first_job_has_succeeded(
        self, failures: Failures, add: Any, postgres: Observer
    ) -> None:
        await add("a", 20)
        await counted(failures)
        run = await failures.start(BulkAction.RETRY, Selection(until=NOW), actor="ann", one_first=True)
        await asyncio.sleep(0.7)
        assert await states(postgres) == {"pending": 1, "failed": 19}
        assert await postgres.fetchval("SELECT id FROM tandem_jobs WHERE state = 'pending'") == "a1"
        await postgres.execute("UPDATE tandem_jobs SET state = 'done', finished_at = 5 WHERE id = 'a1'")
        progress = await ended(failures, run)
        assert (progress.state, progress.done, progress.first_job) == (BulkState.DONE, 20, "a1")
        assert await states(postgres) == {"done": 1, "pending": 19}

    async def test_nothing_follows_when_the_first_job_fails_again(
        self, failures: Failures, add: Any, postgres: Observer
    ) -> None:
        await add("a", 20)
        await counted(failures)
        run = await failures.start(BulkAction.RETRY, Selection(until=NOW), actor="ann", one_first=True)
        await asyncio.sleep(0.3)
        await postgres.execute(
            "UPDATE tandem_jobs SET state = 'failed', error = 'again', finished_at = $1 WHERE state = 'pending'",
            NOW + 5,
        )
        progress = await ended(failures, run)
        assert (progress.state, progress.done) == (BulkState.STOPPED, 1)
        assert progress.note == "the first job ended failed: again"
        assert await states(postgres) == {"failed": 20}

    async def test_a_pace_is_kept_and_any_process_can_stop_it(
        self, failures: Failures, add: Any, postgres: Observer
    ) -> None:
        await add("a", 200)
        await counted(failures)
        began = time.monotonic()
        run = await failures.start(BulkAction.RETRY, Selection(until=NOW), actor="ann", pace=10.0)
        await asyncio.sleep(2.2)
        await Failures().stop(run.id)
        progress = await ended(failures, run)
        assert (progress.state, progress.note) == (BulkState.STOPPED, "stopped by hand")
        assert 10 <= progress.done <= 10 * (time.monotonic() - began + 2)
        assert (await states(postgres))["failed"] == 200 - progress.done

    async def test_rows_that_cannot_be_retried_are_counted_and_left(
        self, failures: Failures, add: Any, postgres: Observer
    ) -> None:
        await add("a", 3)
        await postgres.execute("UPDATE tandem_jobs SET payload = NULL WHERE id = 'a2'")
        await counted(failures)
        progress = await ended(failures, await failures.start(BulkAction.RETRY, Selection(until=NOW), actor="ann"))
        assert (progress.state, progress.done, progress.rejected) == (BulkState.DONE, 2, 1)
        assert "its arguments are unknown" in progress.note

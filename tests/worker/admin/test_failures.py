"""Failures in groups, and bulk actions on them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pydantic_core import to_json

import db
from tests.servers import Observer
from worker import Broker
from worker.admin import failures as module
from worker.admin.audit import AuditLog
from worker.admin.failures import BulkAction, BulkProgress, BulkState, FailureOverview, Failures, Selection
from worker.aio.background import Background
from worker.message import encode

NOW = time.time_ns() // 1_000_000
_INSERT = """
    INSERT INTO tandem_jobs (id, enqueued_at, task, queue, state, payload, tries, error, finished_at)
    SELECT $1 || g, 1000, $2, $3, 'failed', $4, 3, replace($5, '{n}', g::text), $6::bigint - g
    FROM generate_series(1, $7::int) g
"""


@pytest.fixture
async def failures(database_url: str, broker: Broker) -> AsyncIterator[Failures]:
    database: db.Database[Any] = db.Database(database_url, default=True)
    background = Background()
    yield Failures(background=background)
    await background.close()
    await database.dispose()
    db.set_default_database(None)


@pytest.fixture
def add(postgres: Observer) -> Callable[..., Awaitable[None]]:
    """Adds failed jobs."""

    async def add(
        prefix: str,
        count: int,
        task: str = "send",
        error: str = "ValueError: order {n}",
        ended: int = NOW,
        queue: str = "mail",
    ) -> None:
        payload = encode(task, to_json({"to": "ann"}), 1_000)
        await postgres.execute(_INSERT, prefix, task, queue, payload, error, ended, count)

    return add


async def counted(failures: Failures) -> FailureOverview:
    """The groups, counted anew and completely."""
    failures.forget()
    while True:
        overview = await failures.overview()
        if not overview.is_counting:
            return overview


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


class TestGroups:
    async def test_errors_that_differ_in_numbers_are_one_group(self, failures: Failures, add: Any) -> None:
        await add("a", 30)
        await add("b", 5, error="ValueError: user{n}-x of 7", ended=NOW - 100)
        await add("c", 2, task="build", ended=NOW - 7_200_000, queue="reports")
        groups = (await counted(failures)).groups
        assert [(group.task, group.kind, group.jobs) for group in groups] == [
            ("send", "ValueError: order #", 30),
            ("send", "ValueError: # of #", 5),
            ("build", "ValueError: order #", 2),
        ]
        assert groups[0].job_id == "a1"
        assert groups[0].example == "ValueError: order 1"
        assert sum(groups[0].bars(NOW)) == 30
        assert groups[2].bars(NOW)[-1] == 0

    async def test_new_failures_are_added_and_gone_ones_leave(
        self, failures: Failures, add: Any, postgres: Observer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("_FRESH", "_CHECK", "_RESCAN"):
            monkeypatch.setattr(module, name, 0.0)
        await add("a", 30)
        assert (await counted(failures)).jobs == 30
        await add("b", 3, ended=NOW + 1_000)
        overview = await failures.overview()
        overview = await failures.overview()
        assert overview.jobs == 33
        assert (await failures.overview()).jobs == 33  # none is counted twice
        await postgres.execute("DELETE FROM tandem_jobs WHERE id LIKE 'a%'")
        await failures.overview()
        assert (await failures.overview()).jobs == 3

    async def test_the_first_count_is_shown_while_it_goes_on(
        self, failures: Failures, add: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "_CHUNK", 10)
        monkeypatch.setattr(module, "_PATIENCE", 0.0)
        await add("a", 95)
        seen: list[FailureOverview] = []
        while not seen or seen[-1].is_counting:
            seen.append(await failures.overview())
            await asyncio.sleep(0)
        last = await failures.overview()
        assert (last.jobs, last.is_complete) == (95, True)
        assert not seen[0].is_complete


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

    def test_an_action_whose_process_has_died_is_silent(self) -> None:
        progress = BulkProgress(
            id="x",
            action=BulkAction.RETRY,
            actor="ann",
            selection=Selection(until=NOW),
            total=1,
            updated_at=NOW - 60_000,
        )
        assert progress.is_silent
        assert not progress.model_copy(update={"state": BulkState.DONE}).is_silent

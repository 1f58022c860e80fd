"""Failures in groups."""

import asyncio
from typing import Any

import pytest

from tests.servers import Observer
from tests.worker.admin.failed_jobs import NOW, counted
from worker.admin import failure_groups as module
from worker.admin.failure_groups import FailureOverview
from worker.admin.failures import Failures


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

"""What needs attention, and how fast queues are worked off."""

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import db
from tests.servers import Observer
from worker import Broker
from worker.admin.deployment import Deployment
from worker.admin.failure_groups import FailureGroup, FailureOverview
from worker.admin.overview import Matter, OverviewReader
from worker.admin.queues import Pause, QueueInfo, QueueState
from worker.metrics.counts import LANES, OUTCOMES, encode
from worker.metrics.reader import HOUR, MetricsReader
from worker.metrics.records import WorkerReport, WorkerState

NOW = time.time_ns() // 1_000_000
CALM = FailureOverview([], 0, is_complete=True, is_counting=False, as_of=NOW)


@pytest.fixture
async def overview(database_url: str, broker: Broker) -> AsyncIterator[OverviewReader]:
    database: db.Database[Any] = db.Database(database_url, default=True)
    yield OverviewReader(Deployment.of_process(), MetricsReader(broker))
    await database.dispose()
    db.set_default_database(None)


def queue(name: str = "mail", **values: Any) -> QueueInfo:
    settings = {"depth": 0, "due": 0, "later": 0, "oldest_due": None, "workers": 1, "tasks": frozenset[str]()}
    return QueueInfo(name, **(settings | values))


def titles(matters: list[Matter]) -> list[str]:
    return [matter.title for matter in matters]


class TestMatters:
    async def test_a_healthy_project_needs_no_attention(self, overview: OverviewReader) -> None:
        assert await overview.matters([queue(depth=3, due=3, oldest_due=1.0)], [], CALM) == []

    async def test_queues_without_workers_paused_and_late_ones(self, overview: OverviewReader) -> None:
        pause = Pause(datetime.now(UTC), "ann", datetime.now(UTC) + timedelta(hours=1))
        matters = await overview.matters(
            [
                queue("late", depth=9, due=9, oldest_due=3_600.0),
                queue("paused", state=QueueState.PAUSED, pause=pause),
                queue("alone", depth=2, workers=0),
                queue("empty", workers=0),
            ],
            [WorkerReport("w-1", "p1", WorkerState.UNWELL, why="no report for 9 s")],
            CALM,
        )
        assert titles(matters) == ["No worker serves alone", "Worker w-1 is unwell", "late is late", "paused is paused"]
        assert "by ann" in matters[3].detail

    async def test_new_kinds_of_errors(self, overview: OverviewReader) -> None:
        new = FailureGroup("send", "KeyError: 'x'", 3, NOW, NOW - 60_000)
        old = FailureGroup("send", "ValueError", 9, NOW, NOW - 7_200_000)
        assert titles(await overview.matters([], [], CALM._replace(groups=[new, old]))) == ["New error in send"]
        # Before all failures are counted the oldest of a kind is not known.
        assert await overview.matters([], [], CALM._replace(groups=[new], is_complete=False)) == []

    async def test_a_redis_that_evicts(self, overview: OverviewReader, broker: Broker) -> None:
        await broker.redis.config_set("maxmemory-policy", "allkeys-lru")
        try:
            assert titles(await overview.matters([], [], CALM)) == ["Redis evicts keys"]
        finally:
            await broker.redis.config_set("maxmemory-policy", "noeviction")

    async def test_an_old_table(self, overview: OverviewReader, postgres: Observer) -> None:
        await postgres.execute("ALTER TABLE tandem_jobs DROP COLUMN parent")
        (matter,) = await overview.matters([], [], CALM)
        assert matter.title == "The ledger's table is old"
        assert "run 'python -m worker migrate'" in matter.detail

    async def test_a_relay_that_is_behind(self, overview: OverviewReader, postgres: Observer) -> None:
        await postgres.execute(
            "INSERT INTO tandem_jobs (id, enqueued_at, task, queue, state, due, check_at)"
            " SELECT 'j' || g, 1, 'send', 'mail', 'pending', 1, $1::bigint FROM generate_series(1, 3) g",
            NOW - 60_000,
        )
        (matter,) = await overview.matters([], [], CALM)
        assert matter.title == "The relay is behind"
        assert matter.detail.startswith("3 committed jobs wait")

    async def test_clocks_that_are_apart(self, overview: OverviewReader, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("worker.admin.overview.time.time", lambda: time.time_ns() / 1e9 - 30)
        matters = await overview.matters([], [], CALM)
        assert titles(matters) == ["Clocks are apart"] * 2
        assert "ahead of this machine's" in matters[0].detail

    async def test_a_server_that_does_not_answer_is_a_matter_itself(
        self, overview: OverviewReader, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*_: object) -> None:
            raise ConnectionRefusedError("refused")

        monkeypatch.setattr("worker.admin.overview.redis_info", fail)
        assert [(each.title, each.detail) for each in await overview.matters([], [], CALM)] == [
            ("A check has failed", "refused")
        ]


async def test_rates_are_those_of_the_last_minutes(overview: OverviewReader, broker: Broker) -> None:
    """The bucket that is not over yet does not count."""
    row = [0] * LANES
    row[OUTCOMES.index("completed")] = 120
    minute = time.time_ns() // 60_000_000_000
    for number in range(minute - 30, minute):
        await broker.redis.hset(f"mail:metrics:60000:{number}", "", encode(row))  # type: ignore[misc,arg-type]
    rates = await overview.rates([queue(depth=60, due=60)], [])
    assert rates["mail"].rate == pytest.approx(2.0, abs=0.5)
    assert rates["mail"].empty_in == pytest.approx(30.0, abs=10)
    activity = await overview.activity(HOUR, ["mail", "reports"])
    assert activity.total.completed == 30 * 120
    assert len(activity.moments) == 60

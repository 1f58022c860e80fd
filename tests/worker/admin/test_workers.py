"""Workers: listed, and made quiet, resumed and stopped from afar."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Command
from tests.waiting import AT_ONCE, eventually
from tests.worker.admin.conftest import ACTOR
from tests.worker.engine.conftest import Seen, StartWorker
from worker import Broker, task
from worker.admin.audit import AuditLog
from worker.admin.deployment import Deployment
from worker.admin.workers import WorkerAdmin
from worker.metrics.records import WorkerState

RUNS: list[str] = []

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture
def workers(deployment: Deployment) -> WorkerAdmin:
    return WorkerAdmin(deployment)


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    RUNS.clear()


@task
async def note(name: str) -> str:
    RUNS.append(name)
    return name


@task
async def hold(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "held"


async def is_listed(workers: WorkerAdmin, state: WorkerState, worker_id: str = "w") -> bool:
    return any((each.id, each.state) == (worker_id, state) for each in await workers.list())


class TestQuiet:
    async def test_a_quiet_worker_claims_nothing_until_it_is_resumed(
        self, workers: WorkerAdmin, start: StartWorker, observer: Any
    ) -> None:
        """Its running jobs go on, it stays healthy, and other workers go on."""
        async with start(note, hold):
            running = await hold.enqueue(1.0)
            await eventually(lambda: is_listed(workers, WorkerState.WORKING))
            assert await workers.quiet("w", actor=ACTOR) == 1
            await eventually(lambda: is_listed(workers, WorkerState.QUIET))
            waiting = await note.enqueue("later")
            assert await running.result(timeout=AT_ONCE) == "held"
            await asyncio.sleep(4.5)  # longer than a health record lives
            assert RUNS == []
            assert Seen(observer).well()
            async with start(note, id="v"):
                assert await waiting.result(timeout=AT_ONCE) == "later"
                await eventually(lambda: is_listed(workers, WorkerState.WORKING, "v"))
            assert await workers.resume("w", actor=ACTOR) == 1
            assert await (await note.enqueue("again")).result(timeout=AT_ONCE) == "again"

    async def test_a_command_whose_notice_is_lost_is_obeyed_with_the_next_announcement(
        self, workers: WorkerAdmin, start: StartWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """No loop polls for it."""
        monkeypatch.setattr("worker.engine.announcer._INTERVAL", 0.5)
        async with start(note) as one:
            await eventually(lambda: is_listed(workers, WorkerState.WORKING))
            one.engine._commander._notified.set = lambda: None  # type: ignore[method-assign]
            await workers.quiet("w", actor=ACTOR)
            await eventually(lambda: one.engine.jobs.claimer.is_quiet, timeout=AT_ONCE)

    async def test_a_worker_that_takes_the_place_of_another_one_does_not_obey_its_command(
        self, workers: WorkerAdmin, start: StartWorker
    ) -> None:
        """A worker that was told to stop is started again, and works."""
        async with start(note) as one:
            await eventually(lambda: is_listed(workers, WorkerState.WORKING))
            await workers.stop("w", actor=ACTOR)
            await asyncio.wait_for(one.engine.told_to_stop(), AT_ONCE)
        async with start(note) as another:
            assert await (await note.enqueue("n")).result(timeout=AT_ONCE) == "n"
            assert not another.engine._commander.told_to_stop.is_set()

    async def test_a_command_to_no_worker_is_written_down_as_such(
        self, workers: WorkerAdmin, deployment: Deployment
    ) -> None:
        """Nobody was told."""
        assert await workers.quiet("nobody", actor=ACTOR) == 0
        (entry,) = await AuditLog(deployment).read()
        assert (entry.action, entry.subject, entry.outcome) == ("worker.quiet", "nobody", "no such worker")


@pytest.mark.parametrize("command", [("worker", "run"), ("arq", "worker.Settings")], ids=["run", "arq"])
async def test_a_worker_that_is_stopped_from_afar_drains_and_exits_with_0(
    command: tuple[str, ...],
    workers: WorkerAdmin,
    broker: Broker,
    database_url: str,
    redis_url: str,
    tmp_path: Path,
) -> None:
    """As on SIGTERM: its running job ends first."""
    from tests.lifecycle.run_tasks import wait_for_file

    settings: dict[str, Any] = {
        "WORKER_REGISTRY": "tests.lifecycle.run_tasks",
        "WORKER_ID": "w",
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url,
    }
    job = await wait_for_file.enqueue(str(tmp_path / "file"))
    with Command(*command, folder=tmp_path, environment=settings) as run:
        await eventually((tmp_path / "file.begun").exists)
        await eventually(lambda: is_listed(workers, WorkerState.WORKING))
        assert await workers.stop("w", actor=ACTOR) == 1
        await run.says("draining: 1 job is running")
        assert "ann tells this worker: stop" in run.output
        (tmp_path / "file").touch()
        assert await run.ends() == 0
        assert "Traceback" not in run.output
    assert await job.result(timeout=AT_ONCE) == "waited"

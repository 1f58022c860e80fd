"""``python -m worker run --processes``: a supervisor and its workers, on real servers."""

import asyncio
import signal
from pathlib import Path

import pytest

from tests.commands import Command, gone
from tests.lifecycle.run_tasks import double, wait_for_file
from tests.waiting import at_once, eventually
from worker import Broker
from worker.metrics.reader import MetricsReader

TWO = ("worker", "run", "--processes", "2")


@pytest.fixture
def settings(redis_url: str, sqlite_url: str, broker: Broker) -> dict[str, str]:
    """The settings of workers for `run_tasks`."""
    return {
        "REDIS_URL": redis_url,
        "DATABASE_URL": sqlite_url,
        "WORKER_REGISTRY": "tests.lifecycle.run_tasks",
        "WORKER_ID": "test",
        "WORKER_LEASE": "1",
    }


async def healthy_workers(broker: Broker) -> list[str]:
    """The ids of the healthy workers."""
    return [*await MetricsReader(broker).healthy_workers([broker.name])]


async def test_a_worker_that_dies_is_replaced(settings: dict[str, str], tmp_path: Path, broker: Broker) -> None:
    """It is started again under its name and its job runs again. One signal ends all workers with 0."""
    begun = tmp_path / "file.begun"
    job = await wait_for_file.enqueue(str(tmp_path / "file"))
    with Command(*TWO, folder=tmp_path, environment=settings) as run:
        await run.says("works on", times=2)  # the first has the job by then
        await eventually(begun.exists)
        killed, kept = run.workers()
        killed.kill()
        await run.says("test-1 ended with exit code 137; it is started again in 0.5 s")
        await run.says("works on", times=3)
        assert kept in run.workers()
        await eventually(begun.read_text, equals=2 * "begun\n")
        (tmp_path / "file").touch()
        assert await job.result(timeout=30) == "waited"
        await eventually(lambda: healthy_workers(broker), equals=["test-1", "test-2"])
        run.send(signal.SIGTERM)
        assert await run.ends() == 0
        assert run.output.count("stopping on SIGTERM") == 2
    assert await healthy_workers(broker) == []


async def test_the_first_signal_drains_all_workers_and_the_second_interrupts_all(
    settings: dict[str, str], tmp_path: Path, broker: Broker
) -> None:
    """Each worker gets each signal once. A job that hangs is put back."""
    jobs = [str(tmp_path / name) for name in ("a", "b")]
    with Command(*TWO, "--concurrency", "1", folder=tmp_path, environment=settings) as run:
        await run.says("works on", times=2)
        for file in jobs:
            await wait_for_file.enqueue(file)
            await eventually(Path(f"{file}.begun").exists)
        run.send(signal.SIGINT)
        await run.says("stopping on SIGINT", times=2)
        assert "interrupting" not in run.output
        run.send(signal.SIGINT)
        assert await run.ends() == 0
        assert run.output.count("SIGINT: interrupting the running jobs") == 2
        assert "Traceback" not in run.output
    assert await broker.depth("arq:queue") == 2


async def test_workers_do_not_outlive_a_killed_supervisor(settings: dict[str, str], tmp_path: Path) -> None:
    """After a kill -9 of the supervisor its workers drain and end. An idle worker ends at once."""
    with Command(*TWO, folder=tmp_path, environment=settings) as run:
        await run.says("works on", times=2)
        workers = run.workers()
        run.send(signal.SIGKILL)
        await eventually(lambda: all(map(gone, workers)), timeout=10)
        assert run.output.count("the parent process has ended: stopping") == 2
        assert run.output.count("stopped: 0 jobs done") == 2


async def test_burst_ends_when_no_worker_has_anything_left_to_do(
    settings: dict[str, str], tmp_path: Path, broker: Broker
) -> None:
    """The exit code is 0."""
    first = await wait_for_file.enqueue(str(tmp_path / "file"))
    await double.enqueue_many([{"number": number} for number in range(100)])
    with Command(*TWO, "--burst", folder=tmp_path, environment=settings) as run:
        await run.says("works on", times=2)
        (tmp_path / "file").touch()
        assert await run.ends() == 0
    assert await at_once(first.result()) == "waited"
    assert await broker.depth("arq:queue") == 0


async def test_a_burst_that_cannot_start_says_why_once_and_ends_all_workers(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """The exit code is 1."""
    settings["DATABASE_URL"] = f"sqlite+aiosqlite:///{tmp_path}/new.db"
    with Command(*TWO, "--burst", folder=tmp_path, environment=settings) as run:
        assert await run.ends() == 1
    assert run.output.count("run 'python -m worker migrate'") == 1


async def test_a_mistake_that_all_workers_share_is_printed_once(settings: dict[str, str], tmp_path: Path) -> None:
    """The exit code is 2."""
    settings["WORKER_REGISTRY"] = "nowhere.registry"
    with Command(*TWO, folder=tmp_path, environment=settings) as run:
        assert await run.ends() == 2
        assert run.output.count("there is no module nowhere") == 1


async def test_a_signal_ends_workers_that_are_still_starting_with_0(settings: dict[str, str], tmp_path: Path) -> None:
    """There is no traceback."""
    with Command(*TWO, folder=tmp_path, environment=settings) as run:
        await eventually(run.workers, timeout=20)
        run.send(signal.SIGINT)
        assert await run.ends() == 0
        assert "Traceback" not in run.output


async def test_a_terminal_gets_a_last_line_that_counts_jobs(settings: dict[str, str], tmp_path: Path) -> None:
    """The line stays below the output of the workers."""
    with Command(*TWO, folder=tmp_path, environment=settings, terminal=True) as run:
        jobs = await double.enqueue_many([{"number": number} for number in range(3)])
        await asyncio.gather(*(job.result(timeout=20) for job in jobs))
        await run.says("2 of 2 workers · 3 done · 0 failed · 0 retried · 0 running · 0 queued")
        run.send(signal.SIGINT)
        assert await run.ends() == 0
        assert run.output.count("stopped: ") == 2

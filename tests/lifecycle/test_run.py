"""``python -m worker run`` with one process, on real servers."""

import asyncio
import signal
import socket
from pathlib import Path

import pytest

from tests.commands import Command
from tests.lifecycle.run_tasks import (
    alternate_queues,
    break_process_pool,
    cancel_all_tasks,
    double,
    enqueue_through_arq,
    event_loop_module,
    exit_process,
    terminate_child,
    terminate_forked_children,
    wait_for_file,
)
from tests.waiting import at_once, eventually
from worker import Broker, Job, JobFailed

REGISTRY = {"WORKER_REGISTRY": "tests.lifecycle.run_tasks"}

SABOTAGE = """\
from tests.lifecycle.run_tasks import TASKS
from worker.broker.cron_slots import CronSlots
from worker.engine import supervision


async def no_clock(self, queue):
    raise RuntimeError("no clock")


CronSlots.now = no_clock
supervision._LONGEST_PAUSE = supervision._FIRST_PAUSE
"""

LEAVING = """\
import sys
from contextlib import asynccontextmanager
from tests.lifecycle.run_tasks import TASKS

LIFESPAN = "leaving.lifespan"


@asynccontextmanager
async def lifespan():
    sys.exit("FOO is not set")
    yield {}
"""


@pytest.fixture
def settings(redis_url: str, sqlite_url: str, broker: Broker) -> dict[str, str]:
    """The settings of a worker for `run_tasks`."""
    return {**REGISTRY, "REDIS_URL": redis_url, "DATABASE_URL": sqlite_url}


async def test_worker_run_runs_jobs_on_uvloop(settings: dict[str, str], tmp_path: Path) -> None:
    """Jobs run as under arq's command: `ctx["redis"]` is arq's client, and SIGTERM ends the worker with 0."""
    with Command("worker", "run", folder=tmp_path, environment=settings) as run:
        assert await (await double.enqueue(21)).result(timeout=20) == 42
        assert await (await event_loop_module.enqueue()).result(timeout=30) == "uvloop"
        assert await (await enqueue_through_arq.enqueue(4)).result(timeout=30) is None
        assert await Job[int]("by-arq").result(timeout=30) == 8
        run.send(signal.SIGTERM)
        assert await run.ends() == 0
        assert "Traceback" not in run.output


@pytest.mark.parametrize("command", [("worker", "run"), ("arq", "worker.Settings")], ids=["run", "arq"])
async def test_a_job_that_raises_system_exit_does_not_end_the_worker(
    command: tuple[str, ...], settings: dict[str, str], tmp_path: Path
) -> None:
    """`SystemExit` in a child task, a thread or a callback fails its job at most. All other jobs complete."""
    file = tmp_path / "go-on"
    with Command(*command, folder=tmp_path, environment=settings) as run:
        beside = await wait_for_file.enqueue(str(file))
        for how in ("in a child", "in a thread"):
            with pytest.raises(JobFailed, match=f"SystemExit: {how}"):
                await (await exit_process.enqueue(how)).result(timeout=30)
        for how in ("in a child that is not awaited", "in a callback", "after the commit"):
            assert await (await exit_process.enqueue(how)).result(timeout=30) == "stayed"
            await run.says(f"SystemExit: {how}")
        file.touch()
        assert await beside.result(timeout=30) == "waited"
        assert Path(f"{file}.begun").read_text() == "begun\n"  # noqa: ASYNC240 - the workers are other processes
        run.send(signal.SIGTERM)
        assert await run.ends() == 0


@pytest.mark.parametrize("command", [("worker", "run"), ("arq", "worker.Settings")], ids=["run", "arq"])
async def test_a_job_that_cancels_all_asyncio_tasks_ends_a_drained_worker(
    command: tuple[str, ...], settings: dict[str, str], database_url: str, tmp_path: Path
) -> None:
    """The worker exits with 1. Each job starts once and has its outcome."""
    # Not on SQLite: what closes a connection is cancelled too, and one that holds the file's lock is then left with it.
    settings["DATABASE_URL"] = database_url
    file = tmp_path / "go-on"
    with Command(*command, folder=tmp_path, environment=settings) as run:
        beside = await wait_for_file.enqueue(str(file))
        await eventually(Path(f"{file}.begun").exists, timeout=60)
        job = await cancel_all_tasks.enqueue()
        assert await run.ends() == 1
        assert "stopped: 1 job done, 1 failed" in run.output
    assert await at_once(job.result()) == "alone"
    with pytest.raises(asyncio.CancelledError):
        await at_once(beside.result())


@pytest.mark.parametrize("command", [("worker", "run"), ("arq", "worker.Settings")], ids=["run", "arq"])
async def test_a_lifespan_that_raises_system_exit_ends_the_worker_with_its_message(
    command: tuple[str, ...], settings: dict[str, str], tmp_path: Path
) -> None:
    """The message is the last line of the output, and the exit code is that of the SystemExit."""
    (tmp_path / "leaving.py").write_text(LEAVING)
    settings["WORKER_REGISTRY"] = "leaving"
    with Command(*command, folder=tmp_path, environment=settings) as run:
        assert await run.ends() == 1
        assert run.output.splitlines()[-1] == "FOO is not set"
        assert "Traceback" not in run.output


@pytest.mark.parametrize("command", [("worker", "run"), ("arq", "worker.Settings")], ids=["run", "arq"])
async def test_a_signal_to_a_child_process_of_a_job_does_not_reach_the_worker(
    command: tuple[str, ...], settings: dict[str, str], tmp_path: Path
) -> None:
    """The signal ends the child process alone."""
    with Command(*command, folder=tmp_path, environment=settings) as run:
        for method in ("fork", "forkserver"):
            assert await (await terminate_child.enqueue(method)).result(timeout=30) == -signal.SIGTERM
        assert await (await terminate_forked_children.enqueue(50)).result(timeout=60) == [-signal.SIGTERM]
        assert await (await break_process_pool.enqueue()).result(timeout=30) == "broken"
        assert await (await double.enqueue(3)).result(timeout=30) == 6
        assert "stopping" not in run.output
        run.send(signal.SIGINT)
        assert await run.ends() == 0


async def test_arq_worker_runs_jobs_on_uvloop(settings: dict[str, str], tmp_path: Path) -> None:
    """SIGTERM ends it with 0."""
    with Command("arq", "worker.Settings", folder=tmp_path, environment=settings) as arq:
        assert await (await event_loop_module.enqueue()).result(timeout=20) == "uvloop"
        arq.send(signal.SIGTERM)
        assert await arq.ends() == 0
        assert "Traceback" not in arq.output


async def test_the_first_signal_drains_and_the_second_puts_jobs_back(
    settings: dict[str, str], tmp_path: Path, broker: Broker
) -> None:
    """The exit code is 0 in both cases."""
    finishes = await wait_for_file.enqueue(str(tmp_path / "finishes"))
    hangs = await wait_for_file.using(job_id="hangs").enqueue(str(tmp_path / "hangs"))
    with Command("worker", "run", folder=tmp_path, environment=settings) as worker:
        await eventually((tmp_path / "finishes.begun").exists, timeout=20)
        await eventually((tmp_path / "hangs.begun").exists)
        worker.send(signal.SIGINT)
        await worker.says("draining: 2 jobs")
        (tmp_path / "finishes").touch()
        assert await finishes.result(timeout=30) == "waited"
        worker.send(signal.SIGTERM)
        assert await worker.ends() == 0
        assert "Traceback" not in worker.output
    assert await broker.depth("arq:queue") == 1
    assert await hangs.status() == "queued"


@pytest.mark.parametrize("burst", [(), ("--burst",)], ids=["run", "burst"])
async def test_a_signal_while_waiting_for_the_database_ends_the_worker_at_once(
    burst: tuple[str, ...], settings: dict[str, str], tmp_path: Path
) -> None:
    """There is no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        environment = settings | {"DATABASE_URL": f"postgresql://nobody@{host}:{port}/none"}
        with Command("worker", "run", *burst, folder=tmp_path, environment=environment) as run:
            silent.settimeout(20)
            connection, _ = await asyncio.to_thread(silent.accept)
            with connection:
                run.send(signal.SIGTERM)
                assert await run.ends() == (128 + signal.SIGTERM if burst else 0)
                assert run.output.splitlines()[-1].endswith("stopping on SIGTERM")


async def test_an_engine_loop_that_keeps_failing_ends_the_worker_with_exit_code_1(
    settings: dict[str, str], tmp_path: Path
) -> None:
    """So it does under arq, and in a burst."""
    (tmp_path / "sabotage.py").write_text(SABOTAGE)
    settings["WORKER_REGISTRY"] = "sabotage"
    await double.using(delay=3600).enqueue(1)  # so that a burst does not end before
    with (
        Command("worker", "run", folder=tmp_path, environment=settings) as run,
        Command("worker", "run", "--burst", folder=tmp_path, environment=settings) as burst,
        Command("arq", "worker.Settings", folder=tmp_path, environment=settings) as arq,
    ):
        for command in (run, burst, arq):
            assert await command.ends() == 1
            assert "scheduler failed 10 times" in command.output


async def test_burst_ends_when_all_its_queues_are_empty(
    settings: dict[str, str], tmp_path: Path, broker: Broker
) -> None:
    """Jobs that enqueue into another queue of the worker, and delayed jobs, run before it ends."""
    await alternate_queues.using(queue="low").enqueue(20, "low", "high")
    late = await double.using(queue="high", delay=1).enqueue(2)
    arguments = ("--burst", "--queues", "high,low", "--concurrency", "3")
    with Command("worker", "run", *arguments, folder=tmp_path, environment=settings) as run:
        assert await run.ends() == 0
        assert "stopped: 22 jobs done" in run.output
    assert await broker.depths(["high", "low"]) == {"high": 0, "low": 0}
    assert await at_once(late.result()) == 4


async def test_an_interrupted_burst_does_not_exit_with_0(settings: dict[str, str], tmp_path: Path) -> None:
    """A signal ends the burst before its queues are empty."""
    await double.using(delay=3600).enqueue(2)
    with Command("worker", "run", "--burst", folder=tmp_path, environment=settings) as run:
        await run.says("works on")
        run.send(signal.SIGINT)
        assert await run.ends() == 128 + signal.SIGINT


@pytest.mark.parametrize(
    ("setting", "line", "code"),
    [
        ({"REDIS_URL": "redis://127.0.0.1:1/0", "WORKER_CONNECT_WAIT": "0.1"}, "REDIS_URL: no answer within 0.1 s", 1),
        ({"WORKER_CONCURRENCY": "many"}, "WORKER_CONCURRENCY='many' is not a whole number", 2),
        ({"WORKER_REGISTRY": "nowhere.registry"}, "nowhere.registry: 1 problem", 2),
    ],
)
async def test_a_worker_that_cannot_start_says_why_in_one_line(
    setting: dict[str, str], line: str, code: int, settings: dict[str, str], tmp_path: Path
) -> None:
    """There is no traceback. The exit code is 2 for a mistake in the settings, and else 1."""
    with Command("worker", "run", folder=tmp_path, environment=settings | setting) as run:
        assert await run.ends() == code
        assert line in run.output
        assert "Traceback" not in run.output


async def test_arq_watch_is_refused_with_the_command_that_works(settings: dict[str, str], tmp_path: Path) -> None:
    """`arq --watch` would run the old code again."""
    with Command("arq", "worker.Settings", "--watch", str(tmp_path), folder=tmp_path, environment=settings) as arq:
        assert await arq.ends() == 2
        (line,) = arq.output.splitlines()
        assert f"python -m worker run --watch {tmp_path}" in line

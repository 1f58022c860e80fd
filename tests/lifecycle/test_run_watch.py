"""``python -m worker run --watch``: a worker that restarts when the code changes."""

import signal
from pathlib import Path

import pytest

from tests.commands import Command, gone
from tests.lifecycle.run_tasks import wait_for_file
from tests.waiting import eventually
from tests.worker.new_jobs import new_job
from worker import Broker, Job
from worker.broker.records import now_ms
from worker.message import encode

ANSWER = """\
from worker import task


@task
async def answer() -> int:
    return {value}
"""
REGISTRY = 'TASKS = ("tasks.answer.answer", "tests.lifecycle.run_tasks.wait_for_file")\n'


@pytest.fixture
def settings(redis_url: str, sqlite_url: str, broker: Broker) -> dict[str, str]:
    return {"REDIS_URL": redis_url, "DATABASE_URL": sqlite_url}


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """The file of a project's only task, which returns 1."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/__init__.py").touch()
    (tmp_path / "tasks/registry.py").write_text(REGISTRY)
    file = tmp_path / "tasks/answer.py"
    file.write_text(ANSWER.format(value=1))
    return file


def change(code: Path, source: str) -> None:
    """Change a file as an editor does."""
    code.write_text(source)


async def answer(broker: Broker) -> int:
    """Run the task and return its result."""
    job_id = f"answer-{now_ms()}"
    await broker.enqueue([new_job(job_id, encode("answer", b"{}", now_ms()), broker.name)])
    return await Job[int](job_id).result(timeout=20)


async def test_a_change_drains_the_worker_and_starts_the_new_code(
    settings: dict[str, str], code: Path, tmp_path: Path, broker: Broker
) -> None:
    """Running jobs finish on the old code. After a mistake in the new code the watcher waits for the next change."""
    with Command("worker", "run", "--watch", "tasks", folder=tmp_path, environment=settings) as run:
        assert await answer(broker) == 1

        running = await wait_for_file.enqueue(str(tmp_path / "file"))
        await eventually((tmp_path / "file.begun").exists)
        change(code, ANSWER.format(value=2))
        await run.says("draining: 1 job is running")
        (tmp_path / "file").touch()
        assert await running.result(timeout=30) == "waited"
        assert (tmp_path / "file.begun").read_text() == "begun\n"
        assert await answer(broker) == 2

        change(code, "this is not Python")
        await run.says("the worker ended with exit code 2: waiting for a change in tasks")
        change(code, ANSWER.format(value=3))
        assert await answer(broker) == 3

        run.send(signal.SIGINT)
        assert await run.ends() == 0
        assert run.output.count("Traceback") == 0


async def test_no_process_outlives_a_killed_watcher(settings: dict[str, str], code: Path, tmp_path: Path) -> None:
    """With --processes these are a supervisor and its workers."""
    arguments = ("worker", "run", "--watch", "--processes", "2")
    with Command(*arguments, folder=tmp_path, environment=settings) as run:
        await run.says("works on", times=2)
        left = run.workers()
        assert len(left) == 3
        run.send(signal.SIGKILL)
        await eventually(lambda: all(map(gone, left)), timeout=10)


WITHOUT_WATCHFILES = """\
import sys

sys.modules["watchfiles"] = None
sys.argv = ["worker", "run", "--watch"]

from worker.cli import main

main()
"""


@pytest.mark.parametrize(
    ("source", "line"),
    [
        (WITHOUT_WATCHFILES, "--watch needs the package watchfiles: pip install 'tandem-jobs[watch]'"),
        (
            WITHOUT_WATCHFILES.replace('"--watch"', '"."'),
            "DIR needs --watch. Example: python -m worker run --watch .",
        ),
    ],
    ids=["no watchfiles", "no --watch"],
)
async def test_watch_without_watchfiles_and_a_folder_without_watch_are_refused(
    source: str, line: str, settings: dict[str, str], tmp_path: Path
) -> None:
    """The output is one line, the exit code is 2."""
    (tmp_path / "start.py").write_text(source)
    with Command("start", folder=tmp_path, environment=settings) as run:
        assert await run.ends() == 2
        assert run.output == f"{line}\n"

"""`tandem jobs watch`: it follows a job on real servers until the job ends."""

import asyncio
import json
import signal
import subprocess
from pathlib import Path

import pytest

from tests.commands import Command
from tests.worker.admin.conftest import start
from tests.worker.cli.test_cli import run
from tests.worker.engine.conftest import StartWorker
from worker import Broker, JobContext, Retry, task

__all__ = ["start"]  # a fixture

pytestmark = pytest.mark.usefixtures("broker", "database")


@task
async def steps(job: JobContext, count: int) -> int:
    for number in range(1, count + 1):
        await job.progress(number, count, "importing")
        await asyncio.sleep(0.6)
    return count


@task(max_tries=2)
async def again(job: JobContext) -> None:
    if job.attempt == 1:
        raise Retry(defer=60)


@task
async def fail() -> None:
    raise RuntimeError("no such mailbox")


@task
async def hold() -> None:
    await asyncio.sleep(60)


@pytest.fixture
def settings(database_url: str, redis_url: str) -> dict[str, str]:
    return {"DATABASE_URL": database_url, "REDIS_URL": redis_url}


class Watch:
    """``jobs watch`` of one job, beside the worker of the test."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self._folder = folder
        self._settings = settings

    async def __call__(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run it to its end."""
        return await asyncio.to_thread(run, "jobs", "watch", *arguments, cwd=self._folder, **self._settings)

    def started(self, *arguments: str, terminal: bool = False) -> Command:
        """Run it for the length of a block."""
        command = ("worker", "jobs", "watch", *arguments)
        return Command(*command, folder=self._folder, environment=self._settings, terminal=terminal)


@pytest.fixture
def watch(tmp_path: Path, settings: dict[str, str]) -> Watch:
    return Watch(tmp_path, settings)


async def test_it_shows_the_state_and_the_progress_until_the_job_succeeds(
    watch: Watch, start: StartWorker, broker: Broker
) -> None:
    """A line of JSON for each change, and exit code 0. The last line is the end."""
    async with start(steps):
        job = await steps.using(delay=60).enqueue(4)
        with watch.started(job.job_id, "--json") as command:
            await command.says('"scheduled"')
            await broker.run_now(broker.name, job.job_id)
            assert await command.ends() == 0
            lines = [json.loads(line) for line in command.output.splitlines()]
    states = [line["state"] for line in lines if line["progress"] is None]
    assert states == ["scheduled", "running", "done"]
    assert lines[-1]["state"] == "done"
    reported = [line["progress"]["done"] for line in lines if line["progress"] is not None]
    assert reported == sorted(set(reported))
    assert reported[-1] == 4
    assert {line["job_id"] for line in lines} == {job.job_id}


async def test_a_job_that_has_ended_is_told_at_once(watch: Watch, start: StartWorker) -> None:
    """In plain lines where output is not a terminal: the last report, and the end."""
    async with start(steps):
        job = await steps.enqueue(2)
        assert await job.result(20) == 2
    done = await watch(job.job_id)
    assert done.returncode == 0
    progress, end = done.stdout.splitlines()
    assert progress.split()[1:] == ["2", "of", "2", "importing"]
    assert end.split()[1:5] == ["done", "it", "is", "done,"]


async def test_a_failed_job_gives_exit_code_1(watch: Watch, start: StartWorker) -> None:
    """With its error."""
    async with start(fail):
        job = await fail.enqueue()
        done = await watch(job.job_id, "--json")
    assert (done.returncode, done.stderr) == (1, "")
    end = json.loads(done.stdout.splitlines()[-1])
    assert end["state"] == "failed"
    assert end["sentence"].endswith("RuntimeError: no such mailbox")


async def test_a_retried_job_is_followed_to_its_last_attempt(watch: Watch, start: StartWorker, broker: Broker) -> None:
    async with start(again):
        job = await again.enqueue()
        with watch.started(job.job_id, "--json") as command:
            await command.says('"put_back"')
            await broker.run_now(broker.name, job.job_id)
            assert await command.ends() == 0
            assert json.loads(command.output.splitlines()[-1])["state"] == "done"


async def test_an_aborted_job_gives_exit_code_1(watch: Watch, start: StartWorker) -> None:
    """And a job of a queue that is not in WORKER_QUEUES is found if it is given."""
    async with start(hold, queues="mail"):
        job = await hold.using(queue="mail").enqueue()
        with watch.started(job.job_id, "--queue", "mail") as command:
            await command.says("running")
            assert await job.abort(timeout=20)
            assert await command.ends() == 1
            assert "aborted" in command.output


async def test_an_unknown_job_is_one_line(watch: Watch) -> None:
    done = await watch("nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("nowhere: no such job; check the id and the queue")
    assert done.stderr.count("\n") == 1


async def test_ctrl_c_ends_the_watch_and_not_the_job(watch: Watch, start: StartWorker) -> None:
    """Without a traceback, on a terminal."""
    async with start(hold):
        job = await hold.enqueue()
        with watch.started(job.job_id, terminal=True) as command:
            await command.says("running")
            command.send(signal.SIGINT)
            assert await command.ends() == 130
            assert "Traceback" not in command.output
        assert await job.abort(timeout=20)

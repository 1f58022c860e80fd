"""`tandem jobs run`: run one job in this process, and roll it back or commit it."""

import asyncio
import subprocess
from pathlib import Path

import pytest

from tests.servers import Observer
from tests.worker.cli.test_cli import run
from worker import Broker
from worker.broker.records import now_ms
from worker.message import encode
from worker.new_job import NewJob

TASKS = """\
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from worker import JobContext, task


@task(timeout=5, retry_on=(Exception,))
async def write(session: AsyncSession, job: JobContext, words: str) -> str:
    await session.execute(text("INSERT INTO note (words) VALUES (:words)"), {"words": words})
    return f"attempt {job.attempt} wrote {words}"


@task
async def fail(session: AsyncSession) -> None:
    await session.execute(text("INSERT INTO note (words) VALUES ('lost')"))
    raise ValueError("no")


@task
async def compute() -> int:
    return 7
"""
_INSERT = """
    INSERT INTO tandem_jobs (id, enqueued_at, task, queue, state, payload, tries, error, finished_at)
    VALUES ($1, 1000, $2, 'arq:queue', $3, $4, 3, 'ValueError: no', 1700000000000)
"""


class RunCommand:
    """Runs the command in a project of three tasks."""

    def __init__(self, folder: Path, postgres: Observer, settings: dict[str, str]) -> None:
        self._folder = folder
        self._postgres = postgres
        self._settings = settings

    async def add(self, job_id: str, task: str, state: str = "failed", arguments: bytes = b"{}") -> None:
        await self._postgres.execute(_INSERT, job_id, task, state, encode(task, arguments, 1_000))

    async def drop_arguments(self, job_id: str) -> None:
        await self._postgres.execute("UPDATE tandem_jobs SET payload = NULL WHERE id = $1", job_id)

    async def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(run, "jobs", "run", *arguments, cwd=self._folder, **self._settings)

    async def state(self, job_id: str) -> tuple[str, int]:
        (row,) = await self._postgres.fetch("SELECT state, tries FROM tandem_jobs WHERE id = $1", job_id)
        return row["state"], row["tries"]

    async def words(self) -> list[str]:
        return [row["words"] for row in await self._postgres.fetch("SELECT words FROM note")]


@pytest.fixture
async def run_job(tmp_path: Path, postgres: Observer, database_url: str, redis_url: str) -> RunCommand:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/__init__.py").touch()
    (tmp_path / "tasks/notes.py").write_text(TASKS)
    paths = ("tasks.notes.write", "tasks.notes.fail", "tasks.notes.compute")
    (tmp_path / "tasks/registry.py").write_text(f"TASKS = {paths}\n")
    await postgres.execute("CREATE TABLE note (words text)")
    return RunCommand(tmp_path, postgres, {"DATABASE_URL": database_url, "REDIS_URL": redis_url})


async def test_a_job_is_run_and_rolled_back(run_job: RunCommand) -> None:
    """Its result is shown, its attempt is the next one, and neither the table nor its row changes."""
    await run_job.add("a", "write", arguments=b'{"words": "hello"}')
    done = await run_job("a")
    assert done.returncode == 0, done.stderr
    assert done.stdout == 'a  completed, rolled back\n  result  "attempt 4 wrote hello"\n'
    assert await run_job.words() == []
    assert await run_job.state("a") == ("failed", 3)


async def test_a_failed_job_is_committed_with_its_row_on_request(run_job: RunCommand) -> None:
    await run_job.add("a", "write", arguments=b'{"words": "hello"}')
    done = await run_job("a", "--commit")
    assert done.stdout.startswith("a  completed, committed\n"), done.stderr
    assert await run_job.words() == ["hello"]
    assert await run_job.state("a") == ("done", 4)


async def test_a_committed_job_without_statements_is_done_too(run_job: RunCommand) -> None:
    """Otherwise it would be listed as failed for ever."""
    await run_job.add("a", "compute")
    assert (await run_job("a", "--commit")).returncode == 0
    assert await run_job.state("a") == ("done", 4)


async def test_a_job_that_raises_shows_its_traceback(run_job: RunCommand) -> None:
    """Nothing of it stays, and the exit code is 1."""
    await run_job.add("a", "fail")
    done = await run_job("a")
    assert (done.returncode, done.stdout) == (1, "a  failed, rolled back\n")
    assert 'raise ValueError("no")' in done.stderr
    assert await run_job.words() == []


async def test_a_job_that_only_redis_has_is_run(run_job: RunCommand, broker: Broker) -> None:
    """It still waits afterwards."""
    payload = encode("write", b'{"words": "x"}', now_ms())
    await broker.enqueue([NewJob("r", payload, "write", "arq:queue", now_ms(), None, 0, None)])
    assert 'result  "attempt 1 wrote x"' in (await run_job("r")).stdout
    assert await broker.depths(["arq:queue"]) == {"arq:queue": 1}


@pytest.mark.parametrize(
    ("state", "arguments", "line"),
    [
        ("pending", ("a", "--commit"), "a is pending: --commit is for failed jobs, as a worker may run any other one"),
        ("failed", ("b",), "b: no such job: tandem jobs why b"),
    ],
)
async def test_what_cannot_be_run_is_one_line(
    run_job: RunCommand, state: str, arguments: tuple[str, ...], line: str
) -> None:
    await run_job.add("a", "compute", state)
    done = await run_job(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line + "\n")


async def test_a_done_job_without_its_arguments_is_refused_in_one_line(run_job: RunCommand) -> None:
    """It names the setting that drops them, and says what to do instead."""
    await run_job.add("a", "compute", "done")
    await run_job.drop_arguments("a")
    done = await run_job("a")
    line = "a: it is done, and its arguments were dropped (WORKER_KEEP_ARGUMENTS): enqueue a new job\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


async def test_a_task_that_the_registry_lacks_is_one_line(run_job: RunCommand) -> None:
    await run_job.add("a", "gone")
    done = await run_job("a")
    assert (done.returncode, done.stderr) == (1, "a: the registry has no task gone\n")

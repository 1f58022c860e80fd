"""Real worker processes that are killed, frozen, blocked or stopped: which jobs ran, and what is left in Redis."""

import asyncio
import os
import random
import signal
from collections import Counter
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.commands import Command
from tests.commits import held_commits
from tests.conftest import StartPostgres, StartRedis
from tests.lifecycle.forked_workers import ForkedWorkers, fork_server
from tests.lifecycle.kill_tasks import (
    block_event_loop,
    block_thread,
    exit_worker,
    insert_row,
    kill_worker_at,
    kill_worker_of_chunk_at,
    sleep,
    wait_for_file,
)
from tests.servers import Observer
from tests.stopwatch import Stopwatch
from tests.waiting import eventually
from worker import Broker, JobFailed

__all__ = ["fork_server"]  # a fixture

_GRACE = 0.1  # seconds


@pytest.fixture
def environment(redis_url: str, sqlite_url: str, tmp_path: Path) -> dict[str, str]:
    """The settings of a worker with a short lease."""
    return {
        "REDIS_URL": redis_url,
        "DATABASE_URL": sqlite_url,
        "WORKER_REGISTRY": "tests.lifecycle.kill_tasks",
        "WORKER_LEASE": "1",
        "WORKER_GRACE": "5",
        "WORKER_MAX_CRASHES": "100",
        "TASK_LOG": str(tmp_path / "task-log"),
    }


@pytest.fixture
def forked_workers(fork_server: ForkServerContext, environment: dict[str, str], broker: Broker) -> ForkedWorkers:
    """Starts workers on this test's servers."""
    return ForkedWorkers(fork_server, environment, Path(environment["TASK_LOG"]))


def left_keys(observer: Any) -> set[str]:
    """All Redis keys but results, past cron slots, and the records of workers."""
    kept = (
        "arq:result:",
        "arq:slots",
        "arq:queue:health-check",
        "arq:queue:epoch",
        "arq:queue:tasks",
        "arq:queue:metrics:",
        "arq:served-queues",
    )
    return {key for key in observer.keys("*") if not key.startswith(kept)}


class TestKilled:
    @pytest.mark.parametrize("workers", [1, 3])
    async def test_workers_killed_at_random_moments_lose_no_job(
        self, forked_workers: ForkedWorkers, observer: Any, workers: int
    ) -> None:
        """After twenty kill -9 at random moments every job has its result, and no other key is left."""
        moments = random.Random(workers)
        jobs = [job for _ in range(20) for job in await sleep.enqueue_many({"seconds": 0.05} for _ in range(20))]
        running = [forked_workers.new(WORKER_ID=f"w{number}").__enter__() for number in range(workers)]
        try:
            for number in range(20):
                await asyncio.sleep(moments.uniform(0.05, 0.4))
                running[number % workers].kill()
                jobs += await sleep.enqueue_many({"seconds": 0.05} for _ in range(10))
                running[number % workers] = forked_workers.new(WORKER_ID=f"w{number}").__enter__()
            results = [await job.result(timeout=30) for job in jobs]
            assert results == [job.job_id for job in jobs]
            await eventually(lambda: left_keys(observer), equals=set())
        finally:
            for one in running:
                one.__exit__(None, None, None)
        ends = Counter(line for line in forked_workers.task_log if line.startswith("end "))
        assert set(ends) == {f"end {job.job_id}" for job in jobs}

    @pytest.mark.parametrize("moment", ["claimed", "in the body", "committed"])
    async def test_a_worker_killed_at_any_moment_of_a_job_leaves_one_effect(
        self, forked_workers: ForkedWorkers, database_url: str, postgres: Observer, observer: Any, moment: str
    ) -> None:
        """Each of twenty jobs has one effect after a kill -9 after its claim, in its body, or after its COMMIT."""
        await postgres.execute("CREATE TABLE effect (job_id text)")
        names = [f"{moment} {number}" for number in range(20)]
        jobs = [await kill_worker_at.enqueue(name) for name in names]
        for _ in names:
            with forked_workers.new(DATABASE_URL=database_url, WORKER_CONCURRENCY="1") as worker:
                assert await worker.ends() == -signal.SIGKILL
        with forked_workers.new(DATABASE_URL=database_url):
            for job in jobs:
                await job.result(timeout=20)
        effects = await postgres.fetch("SELECT job_id, count(*) AS times FROM effect GROUP BY job_id")
        assert {row["job_id"]: row["times"] for row in effects} == dict.fromkeys(names, 1)
        await eventually(lambda: left_keys(observer), equals=set())

    @pytest.mark.parametrize("moment", ["in the body", "committed"])
    async def test_a_worker_killed_at_any_moment_of_a_chunk_leaves_one_effect_of_each_job(
        self, forked_workers: ForkedWorkers, database_url: str, postgres: Observer, observer: Any, moment: str
    ) -> None:
        """A chunk that was committed is done, each of it; one that was not runs again, each job by itself."""
        await postgres.execute("CREATE TABLE effect (job_id text)")
        names = [f"job {number}" for number in range(10)]
        jobs = await kill_worker_of_chunk_at.enqueue_many({"name": name, "moment": moment} for name in names)
        with forked_workers.new(DATABASE_URL=database_url) as worker:
            assert await worker.ends() == -signal.SIGKILL
        committed = await postgres.fetchval("SELECT count(*) FROM effect")
        assert committed == (10 if moment == "committed" else 0)
        with forked_workers.new(DATABASE_URL=database_url):
            assert [await job.result(timeout=20) for job in jobs] == names
        effects = await postgres.fetch("SELECT job_id, count(*) AS times FROM effect GROUP BY job_id")
        assert {row["job_id"]: row["times"] for row in effects} == dict.fromkeys(names, 1)
        await eventually(lambda: left_keys(observer), equals=set())

    @pytest.mark.parametrize("lease", [1, 10])
    async def test_the_job_of_a_killed_worker_runs_again_elsewhere_within_its_lease(
        self, forked_workers: ForkedWorkers, environment: dict[str, str], tmp_path: Path, lease: int
    ) -> None:
        """It starts on another worker at most two seconds after its lease has ended. The crash is no try."""
        environment["WORKER_LEASE"] = str(lease)
        with forked_workers.new() as first:
            job = await wait_for_file.enqueue(str(tmp_path / "go on"))
            await forked_workers.wait_for_start(job.job_id)
            with forked_workers.new(WORKER_ID="second") as second:
                await second.says("works on")
                first.kill()
                watch = Stopwatch()
                await forked_workers.wait_for_start(job.job_id, times=2)
                assert watch.seconds_running < lease + 2
                (tmp_path / "go on").touch()
                assert await job.result(timeout=30) == "held"
                info = await job.info()
                assert info is not None
                assert info.tries == 1  # a crash is no try

    async def test_a_job_that_kills_its_workers_fails_after_max_crashes(
        self, forked_workers: ForkedWorkers, observer: Any
    ) -> None:
        """The jobs that ran beside it complete."""
        good = await sleep.enqueue_many({"seconds": 0.05} for _ in range(3))
        bad = await exit_worker.enqueue()
        good += await sleep.enqueue_many({"seconds": 0.05} for _ in range(3))
        for _ in range(4):
            with forked_workers.new(WORKER_MAX_CRASHES="4") as worker:
                assert await worker.ends() == 9
        with forked_workers.new(WORKER_MAX_CRASHES="4"):
            with pytest.raises(JobFailed, match="its worker died 4 times while it ran"):
                await bad.result(timeout=30)
            assert [await job.result(timeout=30) for job in good] == [job.job_id for job in good]
        assert forked_workers.task_log.count(f"begin {bad.job_id}") == 4
        await eventually(lambda: left_keys(observer), equals=set())


class TestBlocked:
    async def test_a_blocked_event_loop_ends_the_worker_and_its_job_comes_back(
        self, forked_workers: ForkedWorkers, observer: Any
    ) -> None:
        """The worker ends once the loop is blocked past the job's limit. Its log names the file that blocks."""
        with forked_workers.new(WORKER_GRACE="0.2") as worker:
            job = await block_event_loop.enqueue()
            assert await worker.ends() == 70
            assert "the event loop has not answered" in worker.output
            assert "kill_tasks.py" in worker.output
        await eventually(lambda: not observer.exists(f"arq:in-progress:{job.job_id}"))
        assert await job.status() == "queued"

    @pytest.mark.parametrize("breaks", ["", "yes"])
    async def test_a_thread_that_nothing_can_stop_does_not_keep_the_worker_from_ending(
        self, forked_workers: ForkedWorkers, breaks: str
    ) -> None:
        """The worker ends with 70 although the thread goes on, also if its lifespan raises."""
        with forked_workers.new(WORKER_GRACE="0.1", BREAKS=breaks) as worker:
            job = await block_thread.enqueue()
            await forked_workers.wait_for_start(job.job_id)
            worker.send(signal.SIGTERM)
            assert await worker.ends(timeout=15) == 70
            assert "does not end" in worker.output
            assert ("it cannot be closed" in worker.output) is bool(breaks)
        assert "lifespan ends" in forked_workers.task_log

    async def test_a_worker_frozen_past_its_lease_changes_nothing_of_its_successor(
        self, forked_workers: ForkedWorkers, observer: Any, database_url: str, tmp_path: Path
    ) -> None:
        """When it wakes up, the job, its lock and its result are those of the successor.

        On PostgreSQL, as a worker frozen with the write lock of a SQLite file stops all others.
        """
        with forked_workers.new(DATABASE_URL=database_url) as frozen:
            job = await wait_for_file.enqueue(str(tmp_path / "go on"))
            await forked_workers.wait_for_start(job.job_id)
            frozen.send(signal.SIGSTOP)
            with forked_workers.new(DATABASE_URL=database_url, WORKER_ID="successor"):
                await forked_workers.wait_for_start(job.job_id, times=2)
                holder = observer.get(f"arq:in-progress:{job.job_id}")
                frozen.send(signal.SIGCONT)
                await frozen.says("left to the worker that holds it now")
                assert observer.get(f"arq:in-progress:{job.job_id}") == holder
                (tmp_path / "go on").touch()
                assert await job.result(timeout=30) == "held"
            assert frozen.alive
        assert left_keys(observer) == set()


class TestStopping:
    @pytest.mark.parametrize("times", [1, 2])
    async def test_a_worker_stopped_in_the_middle_of_a_commit_reports_its_real_outcome(
        self, forked_workers: ForkedWorkers, database_url: str, postgres: Observer, observer: Any, times: int
    ) -> None:
        """One signal or two in the middle of a COMMIT: the worker waits for the COMMIT, and the job has one effect."""
        await postgres.execute("CREATE TABLE effect (job_id text)")
        async with held_commits(postgres, "effect") as commits:
            with forked_workers.new(DATABASE_URL=database_url, WORKER_GRACE=str(_GRACE)) as worker:
                job = await insert_row.enqueue()
                await commits.begun(timeout=20)
                for said in ("draining", "interrupting")[:times]:
                    worker.send(signal.SIGTERM)
                    await worker.says(said)
                await asyncio.sleep(2 * _GRACE)
                await commits.let_go()
                assert await worker.ends() == 0
        with forked_workers.new(DATABASE_URL=database_url):
            await job.result(timeout=30)
        assert await postgres.fetchval("SELECT count(*) FROM effect") == 1
        assert forked_workers.task_log.count(f"begin {job.job_id}") == 1
        assert left_keys(observer) == set()
        assert await postgres.backends() == 0

    async def test_a_job_interrupted_by_six_deploys_completes_at_its_first_try(
        self, forked_workers: ForkedWorkers, tmp_path: Path
    ) -> None:
        """An interruption by a deploy is no try: with three tries the job survives six."""
        job = await wait_for_file.enqueue(str(tmp_path / "go on"))
        for times in range(1, 7):
            with forked_workers.new(WORKER_GRACE="0", WORKER_MAX_TRIES="3") as worker:
                await forked_workers.wait_for_start(job.job_id, times=times)
                worker.send(signal.SIGTERM)
                assert await worker.ends() == 0
        (tmp_path / "go on").touch()
        with forked_workers.new(WORKER_MAX_TRIES="3"):
            assert await job.result(timeout=30) == "held"
        info = await job.info()
        assert info is not None
        assert info.tries == 1

    @pytest.mark.parametrize("command", [("arq", "worker.Settings"), ("worker", "run")], ids=" ".join)
    async def test_a_worker_stopped_in_its_lifespan_closes_it_and_exits_with_0(
        self, environment: dict[str, str], tmp_path: Path, observer: Any, command: tuple[str, ...]
    ) -> None:
        """A SIGTERM while the lifespan opens: the lifespan is closed, and there is no traceback."""
        task_log = tmp_path / "task-log"
        with Command(*command, folder=tmp_path, environment=environment | {"SLOW_START": "60"}) as worker:
            await eventually(lambda: task_log.exists() and "lifespan begins" in task_log.read_text(), timeout=20)
            worker.send(signal.SIGTERM)
            assert await worker.ends() == 0
            assert "Traceback" not in worker.output
        assert task_log.read_text().splitlines() == ["lifespan begins", "lifespan ends"]
        assert left_keys(observer) == set()

    @pytest.mark.parametrize("how", ["kill", "freeze"])
    async def test_arq_worker_stopped_without_redis_closes_all_and_exits_with_0(
        self, environment: dict[str, str], tmp_path: Path, own_redis: StartRedis, how: str
    ) -> None:
        """A SIGTERM while Redis is dead or does not answer: the lifespan is closed, and there is no traceback."""
        server = own_redis()
        environment["REDIS_URL"] = server.url
        with Command("arq", "worker.Settings", folder=tmp_path, environment=environment) as arq:
            with redis.Redis.from_url(server.url) as client:
                await eventually(lambda: client.keys("*:health-check:*"), timeout=20)
            process = server.pid
            if how == "kill":
                server.kill()
            else:
                os.kill(process, signal.SIGSTOP)
            arq.send(signal.SIGTERM)
            assert await arq.ends() == 0
            assert "Traceback" not in arq.output
            if how == "freeze":
                os.kill(process, signal.SIGCONT)
        assert "lifespan ends" in (tmp_path / "task-log").read_text()


async def test_arq_check_reports_whether_the_worker_and_its_database_are_healthy(
    environment: dict[str, str], tmp_path: Path, own_postgres: StartPostgres
) -> None:
    """`arq --check` exits with 0 beside a healthy worker, and with 1 five seconds after its database has stopped."""
    database = own_postgres()
    environment["DATABASE_URL"] = database.url
    with Command("arq", "worker.Settings", folder=tmp_path, environment=environment) as arq:
        with redis.Redis.from_url(environment["REDIS_URL"]) as client:
            await eventually(lambda: client.keys("*:health-check:*"), timeout=20)
            with Command("arq", "--check", "worker.Settings", folder=tmp_path, environment=environment) as check:
                assert await check.ends() == 0
            database.kill()
            await eventually(lambda: not client.keys("*:health-check:*"), timeout=5)
            with Command("arq", "--check", "worker.Settings", folder=tmp_path, environment=environment) as check:
                assert await check.ends() == 1
        database.restart()
        arq.send(signal.SIGTERM)
        assert await arq.ends() == 0

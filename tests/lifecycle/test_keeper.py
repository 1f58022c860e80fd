"""Workers whose interpreter something keeps, and workers that are killed: what their keepers make of it."""

import os
import signal
from collections.abc import AsyncIterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from tests.lifecycle.crew import Crew, Worker, fork_server
from tests.lifecycle.perils import (
    fork,
    hold,
    keep_interpreter,
    keep_interpreter_early,
    keep_interpreter_for_good,
    linger,
    nap,
)
from tests.stopwatch import Stopwatch
from tests.waiting import AT_ONCE, eventually
from worker import Job, Queue

__all__ = ["fork_server"]  # a fixture

LEASE = 1.0
KEPT = 4.0  # seconds that something keeps the interpreter


@pytest.fixture
async def queue(redis_url: str) -> AsyncIterator[Queue]:
    """The default queue, empty."""
    queue = Queue(redis_url, default=True)
    yield queue
    await queue.close()


@pytest.fixture
def observer(redis_url: str) -> Any:
    """Looks at Redis from outside."""
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
def crew(fork_server: ForkServerContext, redis_url: str, database_url: str, tmp_path: Path, queue: Queue) -> Crew:
    """Starts workers with a short lease on this test's servers."""
    diary = tmp_path / "diary"
    environment = {
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url,
        "WORKER_REGISTRY": "tests.lifecycle.perils",
        "WORKER_LEASE": str(LEASE),
        "WORKER_GRACE": "5",
        "DIARY": str(diary),
    }
    return Crew(fork_server, environment, diary)


def begun(crew: Crew) -> list[str]:
    """The ids of the jobs whose bodies have begun, as often as they have."""
    return sorted(line.removeprefix("begin ") for line in crew.diary if line.startswith("begin "))


async def keeper_of(worker: Worker) -> psutil.Process:
    """Its keeper process, once there is one."""

    def found() -> psutil.Process | None:
        for child in psutil.Process(worker.pid).children():
            if f"keeper of {worker.pid}" in child.cmdline():
                return child
        return None

    process: psutil.Process = await eventually(found)
    return process


class TestKeptInterpreter:
    async def test_in_a_body(self, crew: Crew) -> None:
        """Code that keeps the interpreter for four leases starts once, and so do all others that ran beside it, though
        another worker waits for them."""
        with crew.worker(WORKER_ID="first") as first:
            jobs: list[Job[Any]] = [*await nap.enqueue_many({"seconds": KEPT} for _ in range(5))]
            await eventually(lambda: len(begun(crew)) == 5)
            await first.says("works on")
            with crew.worker(WORKER_ID="second") as second:
                await second.says("works on")
                second.send(signal.SIGSTOP)  # so that the first gets this one
                jobs.append(await keep_interpreter.enqueue(KEPT))
                await crew.has_begun(jobs[-1].job_id)
                second.send(signal.SIGCONT)
                for job in jobs:
                    await job.result(timeout=30)
            assert "the keeper renews 6 of 6 meanwhile" in first.output
            await first.says("this process stood still")
        assert begun(crew) == sorted(job.job_id for job in jobs)

    async def test_right_after_the_claim(self, crew: Crew) -> None:
        """Jobs of one claim, the first of which keeps the interpreter before any body has begun, start once."""
        with crew.worker(WORKER_ID="first") as first:
            await first.says("works on")
            jobs: list[Job[Any]] = [await keep_interpreter_early.enqueue(KEPT)]
            jobs += await nap.enqueue_many({"seconds": 0.1} for _ in range(10))
            await eventually(lambda: "kept early" in crew.diary)
            with crew.worker(WORKER_ID="second"):
                for job in jobs:
                    await job.result(timeout=30)
        assert crew.diary.count("kept early") == 1
        assert len(set(begun(crew))) == len(begun(crew)) == 11

    async def test_past_all_limits(self, crew: Crew, observer: Any) -> None:
        """A worker whose interpreter is kept for longer than its jobs may take is killed, and says where it was; its
        job counts a crash."""
        with crew.worker(WORKER_GRACE="0.2") as worker:
            job = await keep_interpreter_for_good.enqueue()
            assert await worker.ends() == -signal.SIGKILL
            assert "has run no Python but what keeps the interpreter for" in worker.output
            assert job.job_id in worker.output
            assert "in keep_interpreter_for_good" in worker.output
        await eventually(lambda: not observer.exists(f"arq:in-progress:{job.job_id}"))
        assert observer.hget("arq:started", job.job_id).startswith("1:")

    async def test_not_of_a_stopped_worker(self, crew: Crew) -> None:
        """A worker that is stopped for longer than its jobs may take loses its leases, and is not killed."""
        with crew.worker(WORKER_GRACE="0.2") as stopped:
            job = await nap.enqueue(0.1)
            await job.result(timeout=30)
            stopped.send(signal.SIGSTOP)
            watch = Stopwatch()
            await eventually(lambda: watch.seconds > 3 * LEASE)
            stopped.send(signal.SIGCONT)
            await (await nap.enqueue(0.1)).result(timeout=30)
            assert stopped.alive


class TestKilled:
    async def test_runs_again_at_once(self, crew: Crew, tmp_path: Path) -> None:
        """A job whose worker is killed runs again elsewhere within a second, however long the lease is. The best of
        three, as the machine may stand still."""
        job = await hold.enqueue(str(tmp_path / "go on"))
        seconds = []
        with crew.worker(WORKER_LEASE="60", WORKER_ID="0") as first:
            await crew.has_begun(job.job_id)
            running = first
            for times in (2, 3, 4):
                successor = crew.worker(WORKER_LEASE="60", WORKER_ID=str(times)).__enter__()
                await successor.says("works on")
                running.kill()
                watch = Stopwatch()
                await crew.has_begun(job.job_id, times=times)
                seconds.append(watch.seconds_running)
                if running is not first:
                    running.__exit__(None, None, None)
                running = successor
            (tmp_path / "go on").touch()
            assert await job.result(timeout=30) == "held"
            running.__exit__(None, None, None)
            assert "has died: 1 of its 1 jobs are given back" in first.output
        assert min(seconds) < 1
        assert max(seconds) < AT_ONCE

    async def test_with_a_child_that_lives_on(self, crew: Crew, observer: Any) -> None:
        """A child that the worker has forked, and that outlives it, does not make it seem to live."""
        with crew.worker(WORKER_LEASE="60") as worker:
            job = await fork.enqueue(20.0)
            await crew.has_begun(job.job_id)
            worker.kill()
            await eventually(lambda: not observer.exists(f"arq:in-progress:{job.job_id}"), timeout=AT_ONCE)
        assert observer.hget("arq:started", job.job_id).startswith("1:")  # a crash

    async def test_after_its_keeper(self, crew: Crew, observer: Any) -> None:
        """A keeper that is killed is replaced, which the log says, and the next one gives the jobs back."""
        with crew.worker(WORKER_LEASE="60") as worker:
            job = await nap.enqueue(60.0)
            await crew.has_begun(job.job_id)
            first = await keeper_of(worker)
            first.kill()
            await worker.says("the keeper process ended with code -9; another one is started")
            await eventually(lambda: not first.is_running())
            second = await keeper_of(worker)
            assert second.pid != first.pid
            worker.kill()
            await eventually(lambda: not observer.exists(f"arq:in-progress:{job.job_id}"), timeout=AT_ONCE)

    async def test_told_to_stop(self, crew: Crew) -> None:
        """Neither the terminal's signals nor a container's end a keeper before its worker; it ends with that, and gives
        nothing back."""
        with crew.worker() as worker:
            job = await nap.enqueue(1.0)
            await crew.has_begun(job.job_id)
            keeper = await keeper_of(worker)
            assert os.getpgid(keeper.pid) != os.getpgid(worker.pid)
            keeper.send_signal(signal.SIGTERM)
            keeper.send_signal(signal.SIGINT)
            worker.send(signal.SIGTERM)
            await worker.says("draining")
            assert keeper.is_running()
            assert await worker.ends() == 0
            await eventually(lambda: not keeper.is_running())
            assert "given back" not in worker.output
        assert begun(crew) == [job.job_id]


class TestHeldSlots:
    async def test_all_of_them(self, crew: Crew, observer: Any, tmp_path: Path) -> None:
        """A worker whose slots are all held by threads past their limits says so of each, is unwell, and ends with code
        70; its jobs count a crash where they run next."""
        go_on = tmp_path / "go on"
        with crew.worker(WORKER_CONCURRENCY="2", WORKER_GRACE="0.2", WORKER_ID="held", WORKER_POOL_SIZE="5") as worker:
            await eventually(lambda: observer.exists("arq:queue:health-check:held"))
            jobs = await linger.enqueue_many([{"file": str(go_on)}] * 2)
            for job in jobs:
                await worker.says(f"{job.job_id}:linger does not end")
            await eventually(lambda: not observer.exists("arq:queue:health-check:held"), timeout=10)
            assert worker.alive
            assert await worker.ends(timeout=30) == 70
            assert "all 2 slots are held by jobs past their limits" in worker.output
        go_on.touch()
        with crew.worker():
            for job in jobs:
                await job.result(timeout=30)
        assert begun(crew) == sorted(f"{job.job_id} {previous}" for job in jobs for previous in (0, 1))

"""Workers whose interpreter something keeps, and workers that are killed: what their keepers make of it."""

import os
import signal
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.lifecycle.forked_workers import ForkedWorker, ForkedWorkers, fork_server
from tests.lifecycle.kill_tasks import (
    block_thread_until_file,
    fork_child,
    hold_gil,
    hold_gil_forever,
    hold_gil_in_validator,
    sleep,
    wait_for_file,
)
from tests.stopwatch import Stopwatch
from tests.waiting import AT_ONCE, eventually
from worker import Job, Queue

__all__ = ["fork_server"]  # a fixture

LEASE = 1.0
KEPT = 4.0  # seconds that something keeps the interpreter


@pytest.fixture
def forked_workers(
    fork_server: ForkServerContext, redis_url: str, database_url: str, tmp_path: Path, queue: Queue
) -> ForkedWorkers:
    """Starts workers with a short lease on this test's servers."""
    task_log = tmp_path / "task-log"
    environment = {
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url,
        "WORKER_REGISTRY": "tests.lifecycle.kill_tasks",
        "WORKER_LEASE": str(LEASE),
        "WORKER_GRACE": "5",
        "TASK_LOG": str(task_log),
    }
    return ForkedWorkers(fork_server, environment, task_log)


def begun(forked_workers: ForkedWorkers) -> list[str]:
    """The ids of the jobs whose bodies have begun, as often as they have."""
    return sorted(line.removeprefix("begin ") for line in forked_workers.task_log if line.startswith("begin "))


async def keeper_of(worker: ForkedWorker) -> psutil.Process:
    """Its keeper process, once there is one."""

    def found() -> psutil.Process | None:
        for child in psutil.Process(worker.pid).children():
            if f"keeper of {worker.pid}" in child.cmdline():
                return child
        return None

    process: psutil.Process = await eventually(found)
    return process


class TestKeptInterpreter:
    async def test_a_body_that_holds_the_gil_past_its_lease_starts_once(self, forked_workers: ForkedWorkers) -> None:
        """Code that keeps the interpreter for four leases starts once, and so do all others that ran beside it, though
        another worker waits for them."""
        with forked_workers.new(WORKER_ID="first") as first:
            jobs: list[Job[Any]] = [*await sleep.enqueue_many({"seconds": KEPT} for _ in range(5))]
            await eventually(lambda: len(begun(forked_workers)) == 5)
            await first.says("works on")
            with forked_workers.new(WORKER_ID="second") as second:
                await second.says("works on")
                second.send(signal.SIGSTOP)  # so that the first gets this one
                jobs.append(await hold_gil.enqueue(KEPT))
                await forked_workers.wait_for_start(jobs[-1].job_id)
                second.send(signal.SIGCONT)
                for job in jobs:
                    await job.result(timeout=30)
            assert "the keeper renews 6 of 6 meanwhile" in first.output
            await first.says("this process stood still")
        assert begun(forked_workers) == sorted(job.job_id for job in jobs)

    async def test_jobs_of_one_claim_start_once_although_the_first_holds_the_gil(
        self, forked_workers: ForkedWorkers
    ) -> None:
        """Jobs of one claim, the first of which keeps the interpreter before any body has begun, start once."""
        with forked_workers.new(WORKER_ID="first") as first:
            await first.says("works on")
            jobs: list[Job[Any]] = [await hold_gil_in_validator.enqueue(KEPT)]
            jobs += await sleep.enqueue_many({"seconds": 0.1} for _ in range(10))
            await eventually(lambda: "gil held in validator" in forked_workers.task_log)
            with forked_workers.new(WORKER_ID="second"):
                for job in jobs:
                    await job.result(timeout=30)
        assert forked_workers.task_log.count("gil held in validator") == 1
        assert len(set(begun(forked_workers))) == len(begun(forked_workers)) == 11

    async def test_a_worker_whose_gil_is_held_past_all_limits_is_killed(
        self, forked_workers: ForkedWorkers, observer: Any
    ) -> None:
        """A worker whose interpreter is kept for longer than its jobs may take is killed, and says where it was; its
        job counts a crash."""
        with forked_workers.new(WORKER_GRACE="0.2") as worker:
            job = await hold_gil_forever.enqueue()
            assert await worker.ends() == -signal.SIGKILL
            assert "has run no Python but what keeps the interpreter for" in worker.output
            assert job.job_id in worker.output
            assert "in hold_gil_forever" in worker.output
        await eventually(lambda: not observer.exists(f"arq:in-progress:{job.job_id}"))
        assert observer.hget("arq:started", job.job_id).startswith("1:")

    async def test_a_stopped_worker_loses_its_leases_and_is_not_killed(self, forked_workers: ForkedWorkers) -> None:
        """A worker that is stopped for longer than its jobs may take loses its leases, and is not killed."""
        with forked_workers.new(WORKER_GRACE="0.2") as stopped:
            job = await sleep.enqueue(0.1)
            await job.result(timeout=30)
            stopped.send(signal.SIGSTOP)
            watch = Stopwatch()
            await eventually(lambda: watch.seconds > 3 * LEASE)
            stopped.send(signal.SIGCONT)
            await (await sleep.enqueue(0.1)).result(timeout=30)
            assert stopped.alive


class TestKilled:
    async def test_the_job_of_a_killed_worker_runs_again_within_a_second(
        self, forked_workers: ForkedWorkers, tmp_path: Path
    ) -> None:
        """A job whose worker is killed runs again elsewhere within a second, however long the lease is. The best of
        three, as the machine may stand still."""
        job = await wait_for_file.enqueue(str(tmp_path / "go on"))
        seconds = []
        with forked_workers.new(WORKER_LEASE="60", WORKER_ID="0") as first:
            await forked_workers.wait_for_start(job.job_id)
            running = first
            for times in (2, 3, 4):
                successor = forked_workers.new(WORKER_LEASE="60", WORKER_ID=str(times)).__enter__()
                await successor.says("works on")
                running.kill()
                watch = Stopwatch()
                await forked_workers.wait_for_start(job.job_id, times=times)
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

    async def test_a_forked_child_does_not_make_a_killed_worker_seem_alive(
        self, forked_workers: ForkedWorkers, observer: Any
    ) -> None:
        """A child that the worker has forked, and that outlives it, does not make it seem to live."""
        with forked_workers.new(WORKER_LEASE="60") as worker:
            job = await fork_child.enqueue(20.0)
            await forked_workers.wait_for_start(job.job_id)
            worker.kill()
            await eventually(lambda: not observer.exists(f"arq:in-progress:{job.job_id}"), timeout=AT_ONCE)
        assert observer.hget("arq:started", job.job_id).startswith("1:")  # a crash

    async def test_a_killed_keeper_is_replaced_and_the_next_one_gives_the_jobs_back(
        self, forked_workers: ForkedWorkers, observer: Any
    ) -> None:
        """A keeper that is killed is replaced, which the log says, and the next one gives the jobs back."""
        with forked_workers.new(WORKER_LEASE="60") as worker:
            job = await sleep.enqueue(60.0)
            await forked_workers.wait_for_start(job.job_id)
            first = await keeper_of(worker)
            first.kill()
            await worker.says("the keeper process ended with code -9; another one is started")
            await eventually(lambda: not first.is_running())
            second = await keeper_of(worker)
            assert second.pid != first.pid
            worker.kill()
            await eventually(lambda: not observer.exists(f"arq:in-progress:{job.job_id}"), timeout=AT_ONCE)

    async def test_signals_end_a_keeper_only_after_its_worker(self, forked_workers: ForkedWorkers) -> None:
        """Neither the terminal's signals nor a container's end a keeper before its worker; it ends with that, and gives
        nothing back."""
        with forked_workers.new() as worker:
            job = await sleep.enqueue(1.0)
            await forked_workers.wait_for_start(job.job_id)
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
        assert begun(forked_workers) == [job.job_id]


class TestHeldSlots:
    async def test_a_worker_whose_slots_are_all_held_past_their_limits_exits_with_70(
        self, forked_workers: ForkedWorkers, observer: Any, tmp_path: Path
    ) -> None:
        """A worker whose slots are all held by threads past their limits says so of each, is unwell, and ends with code
        70; its jobs count a crash where they run next."""
        go_on = tmp_path / "go on"
        with forked_workers.new(
            WORKER_CONCURRENCY="2", WORKER_GRACE="0.2", WORKER_ID="held", WORKER_POOL_SIZE="5"
        ) as worker:
            await eventually(lambda: observer.exists("arq:queue:health-check:held"))
            jobs = await block_thread_until_file.enqueue_many([{"file": str(go_on)}] * 2)
            for job in jobs:
                await worker.says(f"{job.job_id}:block_thread_until_file does not end")
            await eventually(lambda: not observer.exists("arq:queue:health-check:held"), timeout=10)
            assert worker.alive
            assert await worker.ends(timeout=30) == 70
            assert "all 2 slots are held by jobs past their limits" in worker.output
        go_on.touch()
        with forked_workers.new():
            for job in jobs:
                await job.result(timeout=30)
        assert begun(forked_workers) == sorted(f"{job.job_id} {previous}" for job in jobs for previous in (0, 1))

"""Keeper processes: they renew the leases of a worker whose GIL is held, and give back the jobs of a dead one."""

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
from worker import Broker, Job

__all__ = ["fork_server"]  # a fixture

LEASE = 1.0
HELD = 4.0  # seconds that a job holds the GIL


@pytest.fixture
def forked_workers(
    fork_server: ForkServerContext, redis_url: str, database_url: str, tmp_path: Path, broker: Broker
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


def started_jobs(forked_workers: ForkedWorkers) -> list[str]:
    """The ids of the jobs whose bodies have started, one for each start."""
    return sorted(line.removeprefix("begin ") for line in forked_workers.task_log if line.startswith("begin "))


async def keeper_of(worker: ForkedWorker) -> psutil.Process:
    """Wait for the keeper process of `worker`."""

    def found() -> psutil.Process | None:
        for child in psutil.Process(worker.pid).children():
            if f"keeper of {worker.pid}" in child.cmdline():
                return child
        return None

    process: psutil.Process = await eventually(found)
    return process


class TestHeldGil:
    async def test_a_body_that_holds_the_gil_past_its_lease_starts_once(self, forked_workers: ForkedWorkers) -> None:
        """The body holds the GIL for four leases. No job beside it starts again either, though a worker is idle."""
        with forked_workers.new(WORKER_ID="first") as first:
            jobs: list[Job[Any]] = [*await sleep.enqueue_many({"seconds": HELD} for _ in range(5))]
            await eventually(lambda: len(started_jobs(forked_workers)) == 5)
            await first.says("works on")
            with forked_workers.new(WORKER_ID="second") as second:
                await second.says("works on")
                second.send(signal.SIGSTOP)  # so that the first gets this one
                jobs.append(await hold_gil.enqueue(HELD))
                await forked_workers.wait_for_start(jobs[-1].job_id)
                second.send(signal.SIGCONT)
                for job in jobs:
                    await job.result(timeout=30)
            assert "the keeper renews 6 of 6 meanwhile" in first.output
            await first.says("this process stood still")
        assert started_jobs(forked_workers) == sorted(job.job_id for job in jobs)

    async def test_jobs_of_one_claim_start_once_although_the_first_holds_the_gil(
        self, forked_workers: ForkedWorkers
    ) -> None:
        """The first job holds the GIL while its arguments are validated, before any body has started."""
        with forked_workers.new(WORKER_ID="first") as first:
            await first.says("works on")
            jobs: list[Job[Any]] = [await hold_gil_in_validator.enqueue(HELD)]
            jobs += await sleep.enqueue_many({"seconds": 0.1} for _ in range(10))
            await eventually(lambda: "gil held in validator" in forked_workers.task_log)
            with forked_workers.new(WORKER_ID="second"):
                for job in jobs:
                    await job.result(timeout=30)
        assert forked_workers.task_log.count("gil held in validator") == 1
        assert len(set(started_jobs(forked_workers))) == len(started_jobs(forked_workers)) == 11

    async def test_a_worker_whose_gil_is_held_past_all_limits_is_killed(
        self, forked_workers: ForkedWorkers, observer: Any
    ) -> None:
        """Its log names the function that held the GIL, and its job counts a crash."""
        with forked_workers.new(WORKER_GRACE="0.2") as worker:
            job = await hold_gil_forever.enqueue()
            assert await worker.ends() == -signal.SIGKILL
            assert "code has blocked the interpreter for" in worker.output
            assert job.job_id in worker.output
            assert "in hold_gil_forever" in worker.output
        await eventually(lambda: not observer.exists(f"arq:in-progress:{job.job_id}"))
        assert observer.hget("arq:started", job.job_id).startswith("1:")

    async def test_a_stopped_worker_loses_its_leases_and_is_not_killed(self, forked_workers: ForkedWorkers) -> None:
        """A SIGSTOP past all limits is not taken for a held GIL."""
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
        """The length of the lease does not matter. The best of three counts, as the machine may stall."""
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
            assert "has died: gave back 1 of its 1 job" in first.output
        assert min(seconds) < 1
        assert max(seconds) < AT_ONCE

    async def test_a_forked_child_does_not_make_a_killed_worker_seem_alive(
        self, forked_workers: ForkedWorkers, observer: Any
    ) -> None:
        """The child outlives the worker; the job is given back all the same."""
        with forked_workers.new(WORKER_LEASE="60") as worker:
            job = await fork_child.enqueue(20.0)
            await forked_workers.wait_for_start(job.job_id)
            worker.kill()
            await eventually(lambda: not observer.exists(f"arq:in-progress:{job.job_id}"), timeout=AT_ONCE)
        assert observer.hget("arq:started", job.job_id).startswith("1:")  # a crash

    async def test_a_killed_keeper_is_replaced_and_the_next_one_gives_the_jobs_back(
        self, forked_workers: ForkedWorkers, observer: Any
    ) -> None:
        """The worker logs that it starts another keeper, which does its work."""
        with forked_workers.new(WORKER_LEASE="60") as worker:
            job = await sleep.enqueue(60.0)
            await forked_workers.wait_for_start(job.job_id)
            first = await keeper_of(worker)
            first.kill()
            await worker.says("the keeper process ended with code -9; starting another one")
            await eventually(lambda: not first.is_running())
            second = await keeper_of(worker)
            assert second.pid != first.pid
            worker.kill()
            await eventually(lambda: not observer.exists(f"arq:in-progress:{job.job_id}"), timeout=AT_ONCE)

    async def test_signals_end_a_keeper_only_after_its_worker(self, forked_workers: ForkedWorkers) -> None:
        """The keeper ignores SIGTERM and SIGINT, ends with its worker, and gives no job back."""
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
            assert "gave back" not in worker.output
        assert started_jobs(forked_workers) == [job.job_id]


class TestHeldSlots:
    async def test_a_worker_whose_slots_are_all_held_past_their_limits_exits_with_70(
        self, forked_workers: ForkedWorkers, observer: Any, tmp_path: Path
    ) -> None:
        """It logs each such job, reports itself unhealthy, then exits. Its jobs count a crash when they run again."""
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
        assert started_jobs(forked_workers) == sorted(f"{job.job_id} {previous}" for job in jobs for previous in (0, 1))

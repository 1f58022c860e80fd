"""The heartbeat: leases that are renewed, lost, and given up."""

import asyncio
import contextlib
import threading
import time
from typing import Any

import pytest

from db.errors import DatabaseUnreachableError
from tests.conftest import StartRedis
from tests.proxy import Proxy
from tests.waiting import eventually
from tests.worker.engine.conftest import Seen, StartWorker, Worker
from worker import Broker, JobContext, task
from worker.broker.records import Claim
from worker.engine.execution import Execution, Phase
from worker.engine.executions import Executions
from worker.engine.heartbeat import _WatchedLoop
from worker.engine.limits import Limits
from worker.engine.stuck_slots import SlotsHeldError

BUSY: dict[str, Any] = {"lease": 1.0, "grace": 0.2}


class Attempts:
    """Counts how often bodies began, and how they ended."""

    def __init__(self) -> None:
        self.began = 0
        self.ended: list[str] = []
        self.go_on = asyncio.Event()

    async def __call__(self) -> str:
        self.began += 1
        try:
            await self.go_on.wait()
        except asyncio.CancelledError:
            self.ended.append("cancelled")
            raise
        self.ended.append("done")
        return "done"


@pytest.fixture
def attempts() -> Attempts:
    return Attempts()


@pytest.fixture
def wait(attempts: Attempts) -> Any:
    @task(name="wait")
    async def wait() -> str:
        return await attempts()

    return wait


async def running(attempts: Attempts, times: int = 1) -> None:
    await eventually(lambda: attempts.began == times)


class TestRenewedLeases:
    async def test_a_task_that_blocks_the_event_loop_for_three_leases_keeps_its_lease(
        self, start: StartWorker, redis_url: str
    ) -> None:
        """It runs once, although another worker waits for the job."""
        began: list[str] = []
        lags: list[float] = []
        other = threading.Thread(target=lambda: asyncio.run(_work_for(redis_url, block, 3.0)))

        @task
        async def block(job: JobContext) -> None:
            began.append(job.job_id)
            other.start()
            time.sleep(3.2)  # noqa: ASYNC251 - the mistake under test
            await asyncio.sleep(0)  # now the loop answers; the next beat asks anew
            lags.append(worker.engine.jobs.heartbeat.lag)

        async with start(block, lease=1.0) as worker:
            job = await block.enqueue()
            await job.result(timeout=30)
        assert lags[0] > 1
        other.join()
        assert began == [job.job_id]

    async def test_a_job_longer_than_its_lease_runs_once(
        self, start: StartWorker, wait: Any, attempts: Attempts
    ) -> None:
        """A job that runs for several leases keeps its own."""
        async with start(wait, lease=1.0), start(wait, id="v", lease=1.0):
            job = await wait.enqueue()
            await running(attempts)
            await asyncio.sleep(2.2)
            attempts.go_on.set()
            assert await job.result(timeout=30) == "done"
        assert attempts.began == 1

    async def test_after_a_flush_of_redis_running_jobs_are_acquired_again_and_end_once(
        self, start: StartWorker, observer: Any, wait: Any, attempts: Attempts, seen: Seen
    ) -> None:
        """All their keys are written again."""
        async with start(wait) as worker:
            job = await wait.enqueue()
            await running(attempts)
            observer.flushdb()
            await eventually(lambda: seen.left() >= {"arq:queue", f"arq:job:{job.job_id}"})
            attempts.go_on.set()
            assert await job.result(timeout=30) == "done"
            await worker.idle()
        assert (attempts.began, seen.left()) == (1, set())

    async def test_leases_deleted_from_redis_are_acquired_again_before_another_worker_claims_the_jobs(
        self, start: StartWorker, observer: Any, wait: Any, attempts: Attempts, seen: Seen
    ) -> None:
        """The jobs run on and end once."""
        async with start(wait), start(wait, id="v"):
            jobs = await wait.enqueue_many({} for _ in range(5))
            await running(attempts, 5)
            lost = [f"arq:in-progress:{job.job_id}" for job in jobs]
            observer.delete(*lost)
            await eventually(lambda: observer.exists(*lost) == 5)
            attempts.go_on.set()
            assert [await job.result(timeout=30) for job in jobs] == ["done"] * 5
        assert (attempts.began, seen.left()) == (5, set())

    async def test_a_queue_that_is_broken_in_redis_does_not_cost_the_leases_of_another(
        self, start: StartWorker, observer: Any, wait: Any, attempts: Attempts
    ) -> None:
        """A queue that other software has broken does not cost the leases of another."""
        async with start(wait, queues="first,second", grace=0), start(wait, id="v", queues="second"):
            jobs = [await wait.using(queue=name).enqueue() for name in ("first", "second")]
            await running(attempts, 2)
            observer.set("first", "not a queue")
            await asyncio.sleep(1.5)
            attempts.go_on.set()
            assert await jobs[1].result(timeout=30) == "done"
            observer.delete("first")
        assert attempts.began == 2

    async def test_leases_that_expired_while_redis_was_unreachable_are_acquired_again(
        self, own_redis: StartRedis, wait: Any, attempts: Attempts
    ) -> None:
        """The jobs are acquired before another worker claims them, and end once."""
        server = own_redis()
        broker = Broker(server.url, default=True)
        async with Proxy(server.url) as proxy:
            workers = [Worker(proxy.url, wait, id=name, lease=1.0) for name in "ab"]
            for worker in workers:
                worker.engine.start()
            jobs = await wait.enqueue_many({} for _ in range(6))
            await running(attempts, 6)
            proxy.refuse()
            await proxy.drop()
            lost = [f"arq:in-progress:{job.job_id}" for job in jobs]
            await eventually(lambda: nothing_at(broker, lost))
            await proxy.resume()
            assert await (await wait.enqueue()).status() == "queued"
            await running(attempts, 7)  # claims go on
            attempts.go_on.set()
            for job in jobs:
                assert await job.result(timeout=30) == "done"
            for worker in workers:
                await worker.stop()
            await broker.close()
        assert (attempts.began, attempts.ended) == (7, ["done"] * 7)


async def nothing_at(broker: Broker, keys: list[str]) -> bool:
    return not await broker.redis.exists(*keys)


class TestLostLeases:
    async def test_a_job_that_another_worker_holds_is_cancelled_here(
        self, start: StartWorker, observer: Any, wait: Any, attempts: Attempts, seen: Seen
    ) -> None:
        """The other worker's keys stay as they are."""
        async with start(wait) as worker:
            job = await wait.enqueue()
            await running(attempts)
            successor = "s" * 28
            observer.set(f"arq:in-progress:{job.job_id}", f"{successor}:1", px=60_000)
            observer.hset("arq:started", job.job_id, f"2:{successor}")
            await eventually(lambda: attempts.ended == ["cancelled"])
            await eventually(lambda: worker.engine.jobs.executions.running == 0)
            assert observer.get(f"arq:in-progress:{job.job_id}") == f"{successor}:1"
            assert seen.left() >= {"arq:queue", f"arq:job:{job.job_id}"}

    async def test_a_worker_cut_off_for_longer_than_its_lease_cancels_the_job_that_another_took(
        self, own_redis: StartRedis, wait: Any, attempts: Attempts
    ) -> None:
        """The job ends once."""
        server = own_redis()
        broker = Broker(server.url, default=True)
        async with Proxy(server.url) as proxy:
            cut_off = Worker(proxy.url, wait, **BUSY)
            successor = Worker(server.url, wait, id="v", lease=1.0)
            cut_off.engine.start()
            try:
                job = await wait.enqueue()
                await running(attempts)
                proxy.blackhole()
                successor.engine.start()
                await running(attempts, 2)
                await proxy.drop()
                await proxy.resume()
                await eventually(lambda: attempts.ended == ["cancelled"], timeout=10)
                attempts.go_on.set()
                assert await job.result(timeout=30) == "done"
                info = await job.info()
                assert info is not None
                assert attempts.ended == ["cancelled", "done"]
            finally:
                await successor.stop()
                await cut_off.stop()
                await broker.close()

    async def test_a_job_that_has_ended_on_another_worker_is_cancelled_here_and_stays_ended(
        self, start: StartWorker, observer: Any, wait: Any, attempts: Attempts, seen: Seen
    ) -> None:
        """The other worker's result is kept."""
        async with start(wait) as worker:
            job = await wait.enqueue()
            await running(attempts)
            with observer.pipeline() as pipe:  # all that a successor's end leaves
                pipe.delete(f"arq:in-progress:{job.job_id}", f"arq:job:{job.job_id}", "arq:started")
                pipe.zrem("arq:queue", job.job_id)
                pipe.set(f"arq:result:{job.job_id}", "theirs")
                pipe.execute()
            await eventually(lambda: attempts.ended == ["cancelled"])
            await worker.idle()
        assert observer.get(f"arq:result:{job.job_id}") == "theirs"
        assert seen.left() == set()


class TestGivenUpLeases:
    async def test_the_lease_of_a_task_that_never_ends_is_given_up_and_another_worker_runs_the_job(
        self, start: StartWorker, seen: Seen
    ) -> None:
        """The task goes on past its timeout and grace."""
        release, runs = threading.Event(), []

        @task(timeout=0.3)
        def stay() -> str:
            runs.append(threading.get_ident())
            if len(runs) == 1:
                release.wait(20)
            return "done"

        async with start(stay, **BUSY), start(stay, id="v", **BUSY):
            job = await stay.enqueue()
            assert await job.result(timeout=30) == "done"
            release.set()
        assert len(runs) == 2
        assert seen.left() == set()

    async def test_a_task_that_never_ends_is_logged_once_and_holding_all_slots_ends_the_worker(
        self, start: StartWorker, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The worker goes on until all of its slots are held, and then ends with code 70."""
        go_on = asyncio.Event()

        @task(timeout=0.2)
        async def stay() -> None:
            while not go_on.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await go_on.wait()

        def told() -> list[str]:
            return [
                record.getMessage() for record in caplog.records if "does not end: it has run" in record.getMessage()
            ]

        async with start(stay, **BUSY | {"lease": 10.0, "concurrency": 2}) as worker:
            failed = asyncio.create_task(worker.engine.failed())
            try:
                first = await stay.enqueue()
                await eventually(told)
                await asyncio.sleep(2 * worker.engine.jobs.heartbeat._interval)
                assert len(worker.engine.jobs.executions.overdue) == 1
                second = await stay.enqueue()
                await eventually(lambda: len(told()) == 2)
                assert [told()[number].split(":")[0] for number in (0, 1)] == [first.job_id, second.job_id]
                assert len(worker.engine.jobs.executions.overdue) == 2
                error = await asyncio.wait_for(failed, 30)
                assert (type(error), error.exit_code) == (SlotsHeldError, 70)
            finally:
                go_on.set()

    async def test_a_job_that_waits_for_its_database_keeps_its_lease(
        self, start: StartWorker, attempts: Attempts, seen: Seen
    ) -> None:
        """However long it runs again and again."""
        until = time.monotonic() + 3

        @task(timeout=0.2)
        async def need() -> str:
            attempts.began += 1
            if time.monotonic() < until:
                raise DatabaseUnreachableError("database", "away")
            return "done"

        async with start(need, **BUSY) as worker:
            job = await need.enqueue()
            await eventually(lambda: time.monotonic() > until - 0.2)
            assert len(worker.engine.jobs.executions) == 1  # not claimed a second time, by itself
            assert await job.result(timeout=30) == "done"
        assert worker.engine.counts["done"] == 1
        assert seen.left() == set()
        assert seen.result(job.job_id)["t"] == 1

    def test_the_time_limit_of_a_lease_counts_from_the_start_of_each_attempt(self) -> None:
        """While the outcome is being written there is no limit."""
        limits = Limits(timeout=0.1, max_tries=5, keep_result=0, lease=0.2)
        job = Execution(Claim(b"a", b"{}", b"1", 0, 0, None), "arq:queue", "t", 0, limits)
        held = Executions(1)
        held.add(job)
        assert held.to_renew("arq:queue") == [job]
        time.sleep(0.25)
        assert held.to_renew("arq:queue") == []
        job.keep_lease()
        assert held.to_renew("arq:queue") == [job]
        time.sleep(0.25)
        assert held.to_renew("arq:queue") == []
        job.keep_lease()
        assert held.to_renew("arq:queue") == [job]
        time.sleep(0.25)
        job.phase = Phase.FINISHING
        assert held.to_renew("arq:queue") == [job]


class TestStuckLoop:
    async def test_a_process_that_was_frozen_as_a_whole_is_not_taken_for_a_stuck_loop(self) -> None:
        """However long it was frozen."""
        loop = _WatchedLoop(interval=0.01, silence=0.5)
        loop.enter()
        assert not loop.is_stuck(0)
        loop._seen_at -= 3600
        assert not loop.is_stuck(0)

    async def test_a_loop_that_does_not_answer_for_longer_than_any_job_may_take_is_stuck(self) -> None:
        """The thread keeps asking meanwhile."""
        loop = _WatchedLoop(interval=0.05, silence=0.2)
        loop.enter()

        def ask() -> list[tuple[bool, bool]]:
            answers = []
            for _ in range(8):
                answers.append((loop.is_stuck(0), loop.is_stuck(60)))
                time.sleep(0.05)
            return answers

        answers = ask()  # this blocks the loop
        assert answers[0] == (False, False)
        assert answers[-1] == (True, False)
        await asyncio.sleep(0)
        assert not loop.is_stuck(0)


async def _work_for(url: str, one: Any, seconds: float) -> None:
    other = Worker(url, one, id="other", lease=1.0)
    other.engine.start()
    await asyncio.sleep(seconds)
    await other.stop()

"""The engine: jobs run, end, are aborted, expire and are interrupted, in one process on a real Redis."""

import asyncio
import importlib
import pickle
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.jobs import Job as StockJob
from redis import Redis

from tests.stopwatch import Stopwatch
from tests.waiting import at_once, eventually
from tests.worker.engine.conftest import Seen, StartWorker
from tests.worker.new_jobs import new_job
from worker import Broker, Job, JobContext, JobFailed, JobStatus, Retry, deserialize, serialize, task
from worker.engine import claimer
from worker.message import encode


class Body:
    """A task's body that records its runs."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.ended: list[str] = []
        self.running = 0
        self.most = 0
        self.go_on = asyncio.Event()

    async def __call__(self, job_id: str) -> None:
        """Run until `go_on` is set."""
        self.began.append(job_id)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.go_on.wait()
        finally:
            self.running -= 1
        self.ended.append(job_id)


@pytest.fixture
def body() -> Body:
    return Body()


@pytest.fixture
def wait(body: Body) -> Any:
    """A task that runs until `body.go_on` is set."""

    @task(name="wait")
    async def wait(job: JobContext) -> str:
        await body(job.job_id)
        return "waited"

    return wait


@task
async def double(number: int) -> int:
    return 2 * number


class NotJson:
    """What JSON cannot say, and a pickle can."""


class OnceOnly:
    """Arrives in a pickle, as a module that cannot be pickled."""

    def __reduce__(self) -> Any:
        return importlib.import_module, ("json",)


@pytest.fixture
async def stock(redis_url: str) -> Any:
    """A stock arq client, with our codec."""
    client = ArqRedis.from_url(redis_url)
    client.job_serializer, client.job_deserializer = serialize, deserialize
    client.default_queue_name = "arq:queue"
    yield client
    await client.aclose()


class TestRunningJobs:
    async def test_a_thousand_jobs_have_their_results_and_leave_no_other_keys(
        self, start: StartWorker, broker: Broker, seen: Seen
    ) -> None:
        """Only results and the health record are left."""
        jobs = await double.enqueue_many({"number": number} for number in range(1000))
        async with start(double) as worker:
            await worker.idle()
            assert [await job.result() for job in jobs[::100]] == [2 * number for number in range(0, 1000, 100)]
            assert len(await broker.redis.keys("arq:result:*")) == 1000
            assert seen.left() == set()

    async def test_as_many_jobs_run_at_once_as_there_are_slots_and_never_more(
        self, start: StartWorker, wait: Any, body: Body
    ) -> None:
        """As many jobs run at once as there are slots, never more; a slot is filled again as soon as it is free."""
        await wait.enqueue_many({} for _ in range(12))
        async with start(wait, concurrency=4) as worker:
            await eventually(lambda: body.running == 4)
            body.go_on.set()
            await worker.idle()
        assert (body.most, len(body.ended)) == (4, 12)

    async def test_an_enqueue_wakes_the_worker_and_an_end_wakes_the_waiter_without_polling(
        self, start: StartWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Both polls are set to a minute."""
        monkeypatch.setattr(claimer, "_POLL", 60.0)
        monkeypatch.setattr("worker.job._POLL_INTERVAL", 60.0)
        async with start(double):
            for number in range(5):
                assert await (await double.enqueue(number)).result(timeout=30) == 2 * number
            deferred = await double.using(delay=0.2).enqueue(9)
            assert await deferred.result(timeout=30) == 18

    async def test_a_job_from_a_stock_arq_client_runs_and_the_client_reads_its_result(
        self, start: StartWorker, stock: ArqRedis
    ) -> None:
        """The job is found although a stock client sends no notice."""
        async with start(double):
            await asyncio.sleep(0)
            job = await stock.enqueue_job("double", number=4)
            assert job is not None
            assert await job.result(timeout=5, poll_delay=0.05) == 8

    async def test_a_producer_whose_clock_is_a_minute_ahead_delays_nothing(
        self, start: StartWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its jobs start as soon as others, and it can abort them."""
        now = time.time_ns
        async with start(double, grace=0):
            with monkeypatch.context() as ahead:
                ahead.setattr("worker.broker.records.time.time_ns", lambda: now() + 60 * 10**9)
                quick = await double.enqueue(1)
                slow = await double.using(delay=30).enqueue(2)
            assert await at_once(quick.result()) == 2
            assert await at_once(slow.abort())

    async def test_a_retry_without_delay_runs_without_waiting_for_a_poll(self, start: StartWorker) -> None:
        """A job that asks to run again at once does, without waiting for a poll."""
        tries: list[int] = []

        @task(max_tries=20)
        async def insist(job: JobContext) -> None:
            tries.append(job.attempt)
            if job.attempt < 20:
                raise Retry

        async with start(insist):
            watch = Stopwatch()
            await (await insist.enqueue()).result(timeout=30)
            assert watch.seconds_running < 20 * claimer._POLL / 2
        assert tries == list(range(1, 21))

    async def test_a_sync_task_runs_in_a_thread(self, start: StartWorker) -> None:
        """A plain function runs in a thread."""

        @task
        def plain() -> bool:
            return threading.current_thread() is threading.main_thread()

        async with start(plain):
            assert await (await plain.enqueue()).result(timeout=30) is False


class TestFailures:
    async def test_a_hook_that_raises_does_not_stop_the_worker(self, start: StartWorker) -> None:
        """It may raise a cancellation or `SystemExit`."""
        calls: list[str] = []

        async def fail(ctx: dict[Any, Any]) -> None:
            calls.append(ctx["job_id"])
            raise (asyncio.CancelledError, ValueError, SystemExit)[len(calls) % 3]

        async with start(double, after_job_end=fail, concurrency=1):
            for number in range(4):
                assert await (await double.enqueue(number)).result(timeout=30) == 2 * number
        assert len(calls) == 4

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
    async def test_a_task_that_raises_a_base_exception_fails_its_job_and_not_the_worker(
        self, start: StartWorker, error: type[BaseException]
    ) -> None:
        """Whatever a body raises, its job fails and the worker lives."""

        @task
        async def burst() -> None:
            raise error

        async with start(burst, double):
            job = await burst.enqueue()
            with pytest.raises((JobFailed, asyncio.CancelledError, GeneratorExit)):
                await job.result(timeout=30)
            assert await (await double.enqueue(3)).result(timeout=30) == 6

    async def test_a_task_that_cancels_every_asyncio_task_does_not_stop_the_worker(self, start: StartWorker) -> None:
        """The engine's loops go on, and the cancelled jobs fail: none is taken for a shutdown."""
        runs: dict[str, int] = {"beside": 0, "careless": 0}

        @task
        async def beside() -> None:
            runs["beside"] += 1
            await asyncio.sleep(30)

        @task
        async def careless() -> None:
            runs["careless"] += 1
            for each in asyncio.all_tasks() - {test}:
                each.cancel()
            await asyncio.sleep(30)

        test = asyncio.current_task()
        async with start(beside, careless, double):
            jobs = [await beside.enqueue()]
            await eventually(lambda: runs["beside"], equals=1)
            jobs.append(await careless.enqueue())
            for job in jobs:
                with pytest.raises(asyncio.CancelledError):
                    await job.result(timeout=30)
            assert await (await double.enqueue(3)).result(timeout=30) == 6
        assert runs == {"beside": 1, "careless": 1}

    async def test_draining_does_not_wait_for_threads_that_a_task_has_left_behind(self, start: StartWorker) -> None:
        """Jobs may have left all threads of asyncio's default executor busy."""
        go_on = threading.Event()

        @task(timeout=0.1)
        async def leave_behind() -> None:
            await asyncio.to_thread(go_on.wait)

        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        async with start(leave_behind) as worker:
            try:
                await leave_behind.enqueue()
                await eventually(lambda: worker.engine.counts["failed"])
                assert await at_once(worker.drain())
            finally:
                go_on.set()

    async def test_an_error_whose_str_raises_fails_its_job(self, start: StartWorker, seen: Seen) -> None:
        """The job's outcome is recorded all the same."""

        class UnprintableError(Exception):
            def __str__(self) -> str:
                raise RuntimeError

        @task
        async def fail() -> None:
            raise UnprintableError

        async with start(fail, log_jobs="off") as worker:
            job = await fail.enqueue()
            await worker.idle()
        assert seen.result(job.job_id)["s"] is False

    async def test_a_result_over_the_limit_fails_its_job_and_large_ones_below_it_are_kept(
        self, start: StartWorker, seen: Seen
    ) -> None:
        """The error names `WORKER_MAX_RESULT`."""

        @task
        async def make(mebibytes: int) -> str:
            return "x" * (mebibytes * 1024 * 1024)

        async with start(make) as worker:
            jobs = await make.enqueue_many({"mebibytes": size} for size in (1, 9, 9, 33, 1))
            await worker.idle(timeout=30)
        assert [seen.result(job.job_id)["s"] for job in jobs] == [True, True, True, False, True]
        error = seen.result(jobs[3].job_id)["r"]
        assert error["type"] == "worker.errors.ResultTooLargeError"
        assert "too many for a result, WORKER_MAX_RESULT allows 33554432: store the value" in error["message"]

    async def test_pickled_arguments_without_a_json_form_do_not_keep_a_job_from_ending(
        self, start: StartWorker, observer: Any, seen: Seen, redis_url: str
    ) -> None:
        """Its outcome is recorded; without the arguments if they can be loaded but not pickled again."""
        job = {"t": None, "f": "double", "a": (), "k": {"number": NotJson()}, "et": 1}
        observer.set("arq:job:p", pickle.dumps(job))
        observer.set("arq:job:q", pickle.dumps(job | {"k": {"number": OnceOnly()}}))
        observer.zadd("arq:queue", {"p": 1, "q": 1})
        async with start(double, accept_pickle=True) as worker:
            await worker.idle()
        with Redis.from_url(redis_url) as client:
            results = [pickle.loads(client.get(f"arq:result:{name}")) for name in "pq"]
        assert [(result["s"], list(result["k"])) for result in results] == [(False, ["number"]), (False, [])]
        assert seen.left() == set()

    async def test_a_job_frees_its_slot_however_it_ends(self, start: StartWorker, broker: Broker) -> None:
        """It fails, cancels itself, exits, or cannot be read."""

        @task
        async def fail(how: int) -> None:
            if how == 0:
                raise ValueError
            if how == 1:
                raise asyncio.CancelledError
            raise SystemExit

        await broker.enqueue([new_job(f"bad{n}", b"\xff", "arq:queue") for n in range(10)])
        async with start(fail, double, concurrency=2, unknown_for=0) as worker:
            await fail.enqueue_many({"how": n % 3} for n in range(30))
            await worker.idle()
            assert worker.engine.jobs.slots.free == 2
            assert await (await double.enqueue(3)).result(timeout=30) == 6


Abort = Callable[[Job[Any]], Coroutine[Any, Any, bool]]


@pytest.fixture(params=["ours", "stock"])
def abort(request: pytest.FixtureRequest, stock: ArqRedis) -> Abort:
    """Aborts a job, through our client and through a stock one."""

    async def ours(job: Job[Any]) -> bool:
        return await job.abort(timeout=5)

    async def stocks(job: Job[Any]) -> bool:
        return await StockJob(job.job_id, stock, _deserializer=deserialize).abort(timeout=5, poll_delay=0.02)

    return ours if request.param == "ours" else stocks


class TestAbort:
    async def test_aborting_a_running_job_cancels_it_once_within_a_second(
        self, start: StartWorker, abort: Abort, wait: Any, body: Body, seen: Seen
    ) -> None:
        """A running job is cancelled within a second, once, and does not run again."""
        async with start(wait) as worker:
            job = await wait.enqueue()
            await eventually(lambda: body.began)
            watch = Stopwatch()
            assert await abort(job)
            assert watch.seconds_running < 1.2
            await worker.idle()
        assert (len(body.began), body.ended, seen.left()) == (1, [], set())

    async def test_an_aborted_task_that_raises_its_own_error_is_still_aborted(
        self, start: StartWorker, abort: Abort, seen: Seen
    ) -> None:
        """Its error is in the recorded traceback."""
        begun = asyncio.Event()

        @task
        async def translate() -> None:
            begun.set()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                raise LookupError("half of it is missing") from None

        async with start(translate):
            job = await translate.enqueue()
            await begun.wait()
            assert await abort(job)
        assert "half of it is missing" in seen.result(job.job_id)["r"]["traceback"]

    async def test_aborting_a_deferred_job_ends_it_at_once_without_running_it(
        self, start: StartWorker, abort: Abort, seen: Seen
    ) -> None:
        """A job that is not due yet ends at once, and does not run."""
        async with start(double):
            job = await double.using(delay=3600).enqueue(1)
            assert await abort(job)
        assert seen.result(job.job_id)["r"]["type"] == "asyncio.exceptions.CancelledError"
        assert seen.left() == set()

    async def test_aborting_a_queued_job_ends_it_without_running_it_once_a_slot_is_free(
        self, start: StartWorker, abort: Abort, wait: Any, body: Body, seen: Seen
    ) -> None:
        """A job that waits for a slot ends without running, once there is one."""
        async with start(wait, concurrency=1):
            first = await wait.enqueue()
            await eventually(lambda: body.began)
            second = await wait.enqueue()
            aborting = asyncio.create_task(abort(second))
            await eventually(lambda: seen.left() >= {"arq:abort"})
            body.go_on.set()
            assert await aborting
            assert await first.result(timeout=30) == "waited"
        assert body.began == [first.job_id]

    async def test_aborting_a_job_that_does_not_exist_aborts_no_later_job_of_its_id(
        self, start: StartWorker, stock: ArqRedis, observer: Any, seen: Seen
    ) -> None:
        """By our client or a stock one, for jobs of either producer."""
        assert not await Job[int]("x").abort(timeout=1)
        for job_id in ("x", "y"):
            observer.zadd("arq:abort", {job_id: int(time.time() * 1000)})  # what a stock client leaves
        await asyncio.sleep(0.002)  # its clock's next millisecond
        async with start(double):
            assert await (await double.using(job_id="x").enqueue(1)).result(timeout=30) == 2
            theirs = await stock.enqueue_job("double", number=1, _job_id="y")
            assert theirs is not None
            assert await theirs.result(timeout=5, poll_delay=0.05) == 2
        assert seen.left() == set()

    async def test_aborting_a_job_that_has_ended_is_false_and_keeps_its_result(self, start: StartWorker) -> None:
        """An abort of a job that has ended is False, and leaves the result as it is."""
        async with start(double):
            job = await double.enqueue(1)
            assert await job.result(timeout=30) == 2
            assert not await job.abort(timeout=1)
            assert await at_once(job.result()) == 2

    async def test_the_id_of_an_aborted_job_can_be_used_again_at_once(self, start: StartWorker, seen: Seen) -> None:
        """Waiting for the aborted job raises `CancelledError`, also after the new one has ended."""
        async with start(double):
            old = await double.using(job_id="x", delay=3600).enqueue(1)
            awaited = asyncio.create_task(old.result(timeout=30))
            assert await old.abort(timeout=5)
            fresh = await double.using(job_id="x").enqueue(2)
            assert fresh.is_new
            assert await fresh.result(timeout=30) == 4
            for result in (awaited, old.result(timeout=30)):
                with pytest.raises(asyncio.CancelledError):
                    await result
            assert (await old.status(), await fresh.status()) == (JobStatus.complete, JobStatus.complete)
            assert not await old.abort(timeout=5)
        assert seen.result("x")["r"] == 4

    async def test_the_handle_of_an_ended_job_aborts_no_later_job_of_its_id(
        self, start: StartWorker, wait: Any, body: Body
    ) -> None:
        """The handle of a job that has ended aborts no later one."""
        async with start(wait):
            old = await wait.using(job_id="x", delay=3600).enqueue()
            assert await old.abort(timeout=5)
            fresh = await wait.using(job_id="x").enqueue()
            await eventually(lambda: body.began)
            assert not await old.abort(timeout=5)
            body.go_on.set()
            assert await fresh.result(timeout=30) == "waited"


class TestExpiry:
    async def test_a_job_that_waited_longer_than_its_expires_fails_without_running(
        self, start: StartWorker, seen: Seen
    ) -> None:
        """A job that waited for longer than it may fails without running."""
        job = await double.using(expires=0.05).enqueue(1)
        await eventually(lambda: "arq:job:" not in str(seen.left()))
        async with start(double):
            with pytest.raises(JobFailed, match="job expired"):
                await job.result(timeout=30)
        assert seen.left() == set()

    async def test_a_job_that_has_begun_does_not_expire(
        self, start: StartWorker, wait: Any, body: Body, observer: Any
    ) -> None:
        """However long it runs, and also when it is interrupted."""
        job = await wait.using(expires=0.2).enqueue()
        async with start(wait, grace=0):
            await eventually(lambda: body.began)
            await asyncio.sleep(0.3)
            assert not (await wait.using(job_id=job.job_id).enqueue()).is_new
        assert observer.exists(f"arq:job:{job.job_id}")
        body.go_on.set()
        async with start(wait):
            assert await job.result(timeout=30) == "waited"


class TestDrain:
    async def test_draining_lets_running_jobs_finish_within_the_grace_time_and_claims_no_more(
        self, start: StartWorker, wait: Any, body: Body, seen: Seen
    ) -> None:
        """Running jobs may finish within the grace time; nothing new is claimed."""
        async with start(wait, concurrency=1) as worker:
            first = await wait.enqueue()
            await eventually(lambda: body.began)
            second = await wait.enqueue()
            draining = asyncio.create_task(worker.drain())
            await asyncio.sleep(0.2)
            assert not draining.done()
            body.go_on.set()
            assert await draining
        assert await at_once(first.result()) == "waited"
        assert await second.status() == "queued"
        assert seen.left() == {"arq:queue", f"arq:job:{second.job_id}"}

    async def test_a_job_interrupted_after_the_grace_time_is_put_back_at_no_cost(
        self, start: StartWorker, broker: Broker, wait: Any, body: Body, seen: Seen
    ) -> None:
        """It keeps its place in the queue. Interrupted six times, it still completes in its first try."""
        job = await wait.enqueue()
        before = await broker.redis.zscore("arq:queue", job.job_id)
        for times in range(6):
            async with start(wait, grace=0, max_tries=3):
                await eventually(lambda: len(body.began), equals=times + 1)
            assert seen.left() == {"arq:queue", f"arq:job:{job.job_id}"}
            assert await broker.redis.zscore("arq:queue", job.job_id) == before
        body.go_on.set()
        async with start(wait, max_tries=3):
            assert await job.result(timeout=30) == "waited"
        assert (await job.info()).tries == 1

    async def test_hurrying_a_drain_interrupts_running_jobs_at_once(
        self, start: StartWorker, wait: Any, body: Body
    ) -> None:
        """The grace time does not count any more."""
        async with start(wait, grace=60) as worker:
            await wait.enqueue()
            await eventually(lambda: body.began)
            draining = asyncio.create_task(worker.drain())
            await asyncio.sleep(0.05)
            worker.engine.hurry()
            assert await at_once(draining)

    async def test_draining_gives_up_on_a_job_that_ignores_its_interruption(
        self, start: StartWorker, seen: Seen, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The drain ends, and the job's lease runs out."""
        monkeypatch.setattr("worker.engine.draining._ROLLBACK_TIMEOUT", 0.2)
        release = threading.Event()

        @task
        def stay() -> None:
            release.wait(10)

        async with start(stay, grace=0.1) as worker:
            job = await stay.enqueue()
            await eventually(lambda: f"arq:in-progress:{job.job_id}" in seen.left())
            assert not await worker.drain()
            release.set()
        assert f"arq:in-progress:{job.job_id}" in seen.left()
        await eventually(lambda: f"arq:in-progress:{job.job_id}" not in seen.left())

    async def test_after_job_end_is_not_called_for_jobs_that_did_not_run(
        self, start: StartWorker, broker: Broker, seen: Seen
    ) -> None:
        """Neither for a payload that cannot be read, nor for a task that no worker knows."""
        ended: list[str] = []

        async def note(ctx: dict[Any, Any]) -> None:
            ended.append(ctx["job_id"])

        @task
        async def double(number: int) -> int:
            return 2 * number

        await broker.enqueue(
            [new_job("garbage", b"{", broker.name), new_job("unknown", encode("gone", b"{}", 1), broker.name)]
        )
        async with start(double, after_job_end=note, unknown_for=0) as worker:
            job = await double.enqueue(1)
            await worker.idle()
            await eventually(lambda: ended)
        assert [seen.result(job_id)["s"] for job_id in ("garbage", "unknown")] == [False, False]
        assert ended == [job.job_id]

    async def test_draining_waits_for_the_after_job_end_hooks(self, start: StartWorker) -> None:
        """after_job_end of the last jobs has run when the drain ends."""
        ended: list[str] = []

        async def slow(ctx: dict[Any, Any]) -> None:
            await asyncio.sleep(0.2)
            ended.append(ctx["job_id"])

        async with start(double, after_job_end=slow) as worker:
            job = await double.enqueue(1)
            await job.result(timeout=30)
            assert await worker.drain()
            assert ended == [job.job_id]


class TestLoops:
    async def test_a_loop_that_keeps_failing_ends_the_engine(self, start: StartWorker) -> None:
        """A loop that fails for no fault of Redis' is started again, and ends the engine if it keeps failing."""

        async def broken(*_: object) -> None:
            raise ZeroDivisionError

        async with start(double) as worker:
            assert await (await double.enqueue(1)).result(timeout=30) == 2
            failed = asyncio.create_task(worker.engine.failed())
            worker.broker.claim_from = broken  # type: ignore[assignment, method-assign]
            with pytest.MonkeyPatch.context() as hasty:
                hasty.setattr("worker.engine.supervision._LONGEST_PAUSE", 0.05)
                hasty.setattr(claimer, "_PAUSE_AFTER_OUTAGE", 0.01)
                error = await asyncio.wait_for(failed, 10)
            assert "claimer failed 10 times, last with ZeroDivisionError" in str(error)

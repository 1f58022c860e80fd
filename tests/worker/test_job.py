"""`Job`: the status, the info and the result of a job, from Redis."""

import asyncio
import sys
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from arq.connections import ArqRedis, create_pool
from arq.jobs import Job as ArqJob
from arq.jobs import JobStatus as ArqJobStatus
from arq.jobs import serialize_result
from pydantic import BaseModel

import worker
from tests.stopwatch import Stopwatch
from worker import Job, JobFailed, JobStatus, deserialize, serialize, task
from worker.broker.records import to_ms
from worker.client.enqueue_time import enqueue_time
from worker.errors import ResultNotFoundError
from worker.settings import redis_settings


class Receipt(BaseModel):
    number: int
    at: datetime


RECEIPT = Receipt(number=7, at=datetime(2026, 1, 2, tzinfo=UTC))


@task
async def send(number: int) -> Receipt:
    raise NotImplementedError("what a worker does is played by WorkerSide")


@pytest.fixture
def worker_side(observer: redis.Redis) -> "WorkerSide":
    return WorkerSide(observer)


def enqueued_at(job: Job[Any]) -> int:
    """Return the enqueue time as on the wire, in milliseconds."""
    assert job.enqueued_at is not None
    return to_ms(job.enqueued_at)


class WorkerSide:
    """Does to a job in Redis what a worker does."""

    def __init__(self, observer: redis.Redis) -> None:
        self._redis = observer

    def begin(self, job: Job[Any]) -> None:
        self._redis.set(f"arq:in-progress:{job.job_id}", "token:1", px=60_000)

    def end(self, job: Job[Any], result: Any, *, success: bool = True, keep: bool = True) -> None:
        raw = serialize_result(
            *("send", (), {"number": 7}, 2, enqueued_at(job), success, result),
            *(2_000, 3_500, "ref", "arq:queue", job.job_id),
            serializer=serialize,
        )
        with self._redis.pipeline() as pipe:
            pipe.delete(f"arq:in-progress:{job.job_id}", f"arq:job:{job.job_id}")
            pipe.zrem(job.queue_name, job.job_id)
            if keep:
                pipe.set(f"arq:result:{job.job_id}", raw or b"", px=60_000)
            pipe.execute()


@pytest.mark.usefixtures("broker")
class TestStatus:
    async def test_the_status_of_a_job_is_arqs_word_in_each_state(self, worker_side: WorkerSide) -> None:
        """Deferred, queued, in progress, complete, not found: as arq spells them, and as arq's own client sees them."""
        later = await send.using(delay=60).enqueue(7)
        assert await later.status() is JobStatus.deferred
        job = await send.enqueue(7)
        assert await job.status() is JobStatus.queued
        worker_side.begin(job)
        assert await job.status() is JobStatus.in_progress
        worker_side.end(job, RECEIPT)
        assert await job.status() is JobStatus.complete
        assert await Job("nobody").status() is JobStatus.not_found
        assert [status.value for status in JobStatus] == [status.value for status in ArqJobStatus]

    async def test_a_handle_made_by_hand_gives_the_same_status(self) -> None:
        """A handle made of an id and a queue's name works like the one that `enqueue` returned."""
        there = await send.using(queue="mail").enqueue(7)
        assert await Job(there.job_id, queue_name="mail").status() is JobStatus.queued
        assert await Job(there.job_id).status() is JobStatus.not_found

    async def test_a_handle_without_a_queue_name_uses_the_default_queue(self, redis_url: str) -> None:
        """Without a name, a handle looks in the queue to which jobs are enqueued by default."""
        broker = worker.Broker(redis_url, name="mail", default=True)
        job = await send.enqueue(7)
        assert Job("x").queue_name == job.queue_name == "mail"
        assert await Job(job.job_id).status() is JobStatus.queued
        await broker.close()


@pytest.mark.usefixtures("broker")
class TestInfo:
    async def test_the_info_of_a_waiting_job_has_its_arguments_and_enqueue_time(self) -> None:
        """The info has task, arguments, status and enqueue time."""
        job = await send.using(delay=5).enqueue(7)
        info = await job.info()
        assert info is not None
        assert (info.job_id, info.task, info.kwargs) == (job.job_id, "send", {"number": 7})
        assert (info.status, info.success, info.result) == (JobStatus.deferred, None, None)
        assert abs(info.enqueued_at - datetime.now(UTC)) < timedelta(seconds=60)

    async def test_the_info_of_a_finished_job_has_its_result_tries_and_times(self, worker_side: WorkerSide) -> None:
        """The info also has the result, in the type that the task's annotation names."""
        job = await send.enqueue(7)
        worker_side.end(job, RECEIPT)
        info = await job.info()
        assert info is not None
        assert (info.status, info.success, info.result, info.tries) == (JobStatus.complete, True, RECEIPT, 2)
        assert info.started_at is not None
        assert info.finished_at == info.started_at + timedelta(seconds=1.5)

    async def test_the_info_of_a_failed_job_has_its_error_and_does_not_raise_it(self, worker_side: WorkerSide) -> None:
        """The info has the error as its result; it is not raised."""
        job = await send.enqueue(7)
        worker_side.end(job, KeyError("k"), success=False)
        info = await job.info()
        assert info is not None
        assert (info.success, repr(info.result)) == (False, "KeyError('k')")

    async def test_the_info_of_an_unknown_job_is_none(self) -> None:
        """A job that Redis does not know has no info."""
        assert await Job("nobody").info() is None


@pytest.mark.usefixtures("broker")
class TestResult:
    async def test_a_result_has_the_type_of_the_tasks_return_annotation(self, worker_side: WorkerSide) -> None:
        """A handle from `enqueue` restores the type; a handle made by hand knows no type and returns JSON."""
        job = await send.enqueue(7)
        worker_side.end(job, RECEIPT)
        assert await job.result() == RECEIPT
        assert await Job(job.job_id).result() == {"number": 7, "at": "2026-01-02T00:00:00Z"}

    async def test_result_waits_until_the_job_has_ended(self, worker_side: WorkerSide) -> None:
        """A caller that asks early gets the result when the job ends."""
        job = await send.enqueue(7)
        asked = asyncio.create_task(job.result(timeout=30))
        worker_side.begin(job)
        await asyncio.sleep(0.1)
        assert not asked.done()
        worker_side.end(job, RECEIPT)
        assert await asked == RECEIPT

    @pytest.mark.parametrize("error", [ValueError("no", 3), asyncio.CancelledError(), FileNotFoundError(2, "no", "/a")])
    async def test_built_in_exceptions_are_raised_as_themselves(
        self, worker_side: WorkerSide, error: BaseException
    ) -> None:
        """A built-in exception is raised as if the task had been called directly."""
        job = await send.enqueue(7)
        worker_side.end(job, error, success=False)
        with pytest.raises(type(error)) as caught:
            await job.result()
        assert str(caught.value) == str(error)

    async def test_other_exceptions_are_raised_as_job_failed(self, worker_side: WorkerSide) -> None:
        """The class of the exception need not exist in this process."""
        job = await send.enqueue(7)
        worker_side.end(job, redis.ResponseError("of the task's"), success=False)
        with pytest.raises(JobFailed, match="of the task's") as caught:
            await job.result()
        assert caught.value.type == "redis.exceptions.ResponseError"

    async def test_a_result_that_arq_could_not_serialize_is_a_failure(self, worker_side: WorkerSide) -> None:
        """A text in the place of an error, as stock arq writes it, is raised as `JobFailed`."""
        job = await send.enqueue(7)
        worker_side.end(job, "unable to serialize result", success=False)
        with pytest.raises(JobFailed, match="unable to serialize"):
            await job.result()

    async def test_a_result_that_does_not_come_in_time_is_a_timeout_error(self) -> None:
        """`timeout` is in seconds, and the error names the job."""
        job = await send.enqueue(7)
        watch = Stopwatch()
        with pytest.raises(TimeoutError, match=rf"job {job.job_id} did not end within 0.2 s"):
            await job.result(timeout=0.2)
        assert watch.seconds >= 0.2
        assert watch.seconds_running < 1

    async def test_a_result_of_an_unknown_job_or_one_that_was_not_kept_is_not_found(
        self, worker_side: WorkerSide
    ) -> None:
        """A caller does not wait for a result that will never come."""
        job = await send.enqueue(7)
        asked = asyncio.create_task(job.result())
        await asyncio.sleep(0.05)
        worker_side.end(job, None, keep=False)
        with pytest.raises(ResultNotFoundError, match="its result was not kept"):
            await asked
        with pytest.raises(ResultNotFoundError, match="job nobody is not in Redis"):
            await Job("nobody").result()


@pytest.mark.usefixtures("broker")
class TestReusedId:
    """An id that is used again: the handle of one job never means another job."""

    async def test_the_handle_of_an_ended_job_ignores_a_later_job_of_its_id(self, worker_side: WorkerSide) -> None:
        """The earlier job is not found, whatever the later one's status is."""
        old = await send.using(job_id="r7").enqueue(7)
        worker_side.end(old, RECEIPT, keep=False)
        new = await send.using(job_id="r7").enqueue(7)
        for begin in (False, True):
            if begin:
                worker_side.begin(new)
            assert await new.status() is (JobStatus.in_progress if begin else JobStatus.queued)
            assert (await old.status(), await old.info()) == (JobStatus.not_found, None)
            with pytest.raises(ResultNotFoundError):
                await old.result()
        worker_side.end(new, RECEIPT)
        assert (await old.status(), await new.status()) == (JobStatus.not_found, JobStatus.complete)
        with pytest.raises(ResultNotFoundError):
            await old.result()
        assert await new.result() == RECEIPT

    async def test_a_handle_made_by_hand_knows_its_job_by_id_and_enqueue_time(self, worker_side: WorkerSide) -> None:
        """A handle means the job of its id and enqueue time; without a time it means the last job of the id."""
        old = await send.using(job_id="r7").enqueue(7)
        worker_side.end(old, RECEIPT, keep=False)
        new = await send.using(job_id="r7").enqueue(7)
        assert await Job("r7").status() is JobStatus.queued
        assert await Job("r7", enqueued_at=new.enqueued_at).status() is JobStatus.queued
        assert await Job("r7", enqueued_at=old.enqueued_at).status() is JobStatus.not_found
        with pytest.raises(ValueError, match="has no time zone"):
            Job("r7", enqueued_at=datetime(2026, 1, 2))  # noqa: DTZ001 - naive on purpose

    async def test_the_handle_of_a_job_whose_id_was_taken_means_the_existing_job(self) -> None:
        """If the id was taken, the handle means the job that has the id."""
        await send.using(job_id="r7").enqueue(7)
        again = await send.using(job_id="r7").enqueue(8)
        assert (again.is_new, again.enqueued_at) == (False, None)
        info = await again.info()
        assert info is not None
        assert info.kwargs == {"number": 7}

    async def test_a_result_without_an_enqueue_time_belongs_to_the_last_job(
        self, worker_side: WorkerSide, observer: redis.Redis
    ) -> None:
        """A result that does not say when its job was enqueued belongs to the last job."""
        job = await send.using(job_id="r7").enqueue(7)
        worker_side.end(job, KeyError("k"), success=False)
        raw = str(observer.get("arq:result:r7"))
        observer.set("arq:result:r7", raw.replace(f'"et":{enqueued_at(job)}', '"et":0'))
        with pytest.raises(KeyError):
            await job.result()

    async def test_a_payload_of_other_software_is_not_taken_for_the_job(self, observer: redis.Redis) -> None:
        """If the payload cannot be read, the job is not found."""
        job = await send.using(job_id="r7").enqueue(7)
        observer.set("arq:job:r7", b"\x80\x04.")
        assert await job.status() is JobStatus.not_found

    async def test_enqueue_times_of_one_id_increase_also_when_the_clock_stands_still(
        self, monkeypatch: pytest.MonkeyPatch, worker_side: WorkerSide
    ) -> None:
        """Each job of one id is enqueued later than the one before, also when the clock was set back."""
        monkeypatch.setattr("worker.client.enqueue_time._last", OrderedDict())
        times = []
        for now in (5_000, 5_000, 4_000):
            monkeypatch.setattr("worker.client.enqueue_time.now_ms", lambda now=now: now)
            job = await send.using(job_id="stands still").enqueue(7)
            times.append(enqueued_at(job))
            worker_side.end(job, RECEIPT, keep=False)
        assert times == [5_000, 5_001, 5_002]


def test_enqueue_times_are_remembered_for_the_latest_ids_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the ids that were used last are remembered."""
    monkeypatch.setattr("worker.client.enqueue_time._REMEMBERED", 2)
    monkeypatch.setattr("worker.client.enqueue_time._last", OrderedDict())
    monkeypatch.setattr("worker.client.enqueue_time.now_ms", lambda: 5_000)
    assert [enqueue_time(job_id) for job_id in "aabacaba"] == [5_000, 5_001, 5_000, 5_002, 5_000, 5_003, 5_000, 5_004]


def test_many_threads_can_take_enqueue_times_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that take enqueue times at the same time do not disturb each other."""
    monkeypatch.setattr("worker.client.enqueue_time._REMEMBERED", 10)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda thread: [enqueue_time(f"{thread} {number}") for number in range(3000)], range(8)))
    finally:
        sys.setswitchinterval(interval)


@pytest.fixture
async def arq_client(redis_url: str) -> Any:
    """A stock arq client with Tandem's codec."""
    client = await create_pool(redis_settings(redis_url), job_serializer=serialize, job_deserializer=deserialize)
    yield client
    await client.aclose()


@pytest.mark.usefixtures("broker")
class TestStockClient:
    async def test_a_stock_client_reads_status_info_and_result_of_tandems_jobs(
        self, arq_client: ArqRedis, worker_side: WorkerSide
    ) -> None:
        """It reads status, info and result of a job that Tandem enqueued."""
        job = await send.enqueue(7)
        theirs = ArqJob(job.job_id, arq_client, _deserializer=deserialize)
        assert await theirs.status() is ArqJobStatus.queued
        info = await theirs.info()
        assert info is not None
        assert (info.function, info.kwargs) == ("send", {"number": 7})
        assert [queued.job_id for queued in await arq_client.queued_jobs()] == [job.job_id]
        worker_side.end(job, RECEIPT)
        assert await theirs.result() == {"number": 7, "at": "2026-01-02T00:00:00Z"}
        assert await theirs.status() is ArqJobStatus.complete

    async def test_a_stock_client_enqueues_jobs_that_tandem_reads(self, arq_client: ArqRedis) -> None:
        """`enqueue_job`, with positional and named arguments, adds a job like Tandem's; both share the ids."""
        theirs = await arq_client.enqueue_job("send", 7, at=RECEIPT.at, _job_id="r7")
        assert theirs is not None
        info = await Job("r7").info()
        assert info is not None
        assert (info.task, info.args, info.kwargs) == ("send", (7,), {"at": "2026-01-02T00:00:00Z"})
        assert not (await send.using(job_id="r7").enqueue(8)).is_new
        await send.using(job_id="r8").enqueue(8)
        assert await arq_client.enqueue_job("send", 7, _job_id="r8") is None

    async def test_a_stock_client_raises_the_errors_of_tandems_jobs(
        self, arq_client: ArqRedis, worker_side: WorkerSide
    ) -> None:
        """A built-in exception as itself, another one as `JobFailed`."""
        for error, kind in ((KeyError("k"), KeyError), (redis.ResponseError("x"), JobFailed)):
            job = await send.enqueue(7)
            worker_side.end(job, error, success=False)
            with pytest.raises(kind):
                await ArqJob(job.job_id, arq_client, _deserializer=deserialize).result()

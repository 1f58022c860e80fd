"""Progress: what a running job reports is seen at once, and costs it nothing."""

import asyncio
import time
from typing import Any

import pytest

from tests.waiting import AT_ONCE, eventually
from tests.worker.conftest import RoundTrips
from tests.worker.engine.conftest import StartWorker
from worker import Broker, Job, JobContext, JobStatus, Progress, Retry, task
from worker.broker.progress import ProgressRecord, ProgressRecords
from worker.errors import ResultNotFoundError


@task
async def steps(job: JobContext, total: int, pause: float) -> str:
    for number in range(1, total + 1):
        await job.progress(number, total, "importing")
        await asyncio.sleep(pause)
    return "imported"


async def followed(job: Job[Any]) -> list[Progress]:
    return [progress async for progress in job.progress()]


class TestReports:
    async def test_a_reader_sees_reports_as_they_come_and_the_last_one_before_the_end(self, start: StartWorker) -> None:
        """At most one every half a second goes out: the latest one."""
        async with start(steps):
            job = await steps.enqueue(30, 0.05)
            began = time.monotonic()
            seen = await asyncio.wait_for(followed(job), 20)
            took = time.monotonic() - began
            assert await job.status() is JobStatus.complete
        assert (seen[0].done, seen[0].total, seen[0].note, seen[0].attempt) == (1, 30, "importing", 1)
        assert seen[-1].done == 30
        assert [progress.done for progress in seen] == sorted({progress.done for progress in seen})
        assert 3 <= len(seen) <= took / 0.5 + 2

    async def test_the_info_of_a_running_job_has_its_progress(self, start: StartWorker) -> None:
        """Of an ended job it has the result."""
        async with start(steps):
            job = await steps.enqueue(2, 1.0)

            async def shown() -> Progress | None:
                info = await job.info()
                return None if info is None else info.progress

            progress = await eventually(shown)
            assert (progress.done, progress.total) == (1, 2)
            await job.result(timeout=AT_ONCE)
            info = await job.info()
            assert info is not None
            assert (info.result, info.progress) == ("imported", None)

    async def test_a_plain_function_reports_without_await(self, start: StartWorker) -> None:
        """From its thread."""

        @task
        def plain(job: JobContext) -> None:
            job.progress(1, None, "in a thread")
            time.sleep(0.2)

        async with start(plain):
            (progress,) = await asyncio.wait_for(followed(await plain.enqueue()), 20)
        assert (progress.done, progress.total, progress.note) == (1, None, "in a thread")

    async def test_each_attempt_reports_anew(self, start: StartWorker) -> None:
        """The number of the attempt tells them apart."""

        @task
        async def twice(job: JobContext) -> None:
            await job.progress(10 - job.attempt)
            await asyncio.sleep(0.1)
            if job.attempt == 1:
                raise Retry(0.3)

        async with start(twice):
            seen = await asyncio.wait_for(followed(await twice.enqueue()), 20)
        assert [(progress.attempt, progress.done) for progress in seen] == [(1, 9), (2, 8)]

    @pytest.mark.parametrize("keep_result", [0, 60])
    async def test_following_a_job_without_reports_ends_with_the_job(
        self, start: StartWorker, keep_result: float
    ) -> None:
        """Whether its result is kept or not."""

        @task(keep_result=keep_result)
        async def silent() -> None:
            await asyncio.sleep(0.5)

        async with start(silent):
            assert await asyncio.wait_for(followed(await silent.enqueue()), 20) == []

    async def test_a_job_that_does_not_exist_cannot_be_followed(self, broker: Broker) -> None:
        """It is not taken for one that has ended."""
        with pytest.raises(ResultNotFoundError):
            await followed(Job("nowhere", broker=broker))

    async def test_the_progress_of_an_earlier_job_of_the_id_is_not_shown(self, start: StartWorker) -> None:
        """Its last report is kept for a minute."""
        async with start(steps):
            first = await steps.using(job_id="same").enqueue(1, 0)
            await first.result(timeout=AT_ONCE)
            await first._redis.redis.delete("arq:result:same")
            second = await steps.using(job_id="same").enqueue(0, 0)
            assert await asyncio.wait_for(followed(second), 20) == []

    @pytest.mark.parametrize("wrong", ["a lot", None])
    async def test_a_report_without_a_number_fails_the_job(self, start: StartWorker, wrong: Any) -> None:
        """Where it is made, not in the background."""

        @task
        async def bad(job: JobContext) -> None:
            await job.progress(wrong)

        async with start(bad):
            with pytest.raises((TypeError, ValueError)):
                await (await bad.enqueue()).result(timeout=AT_ONCE)


class TestCosts:
    async def test_a_job_that_reports_often_sends_little(self, start: StartWorker, observer: Any) -> None:
        """And a job that reports nothing sends nothing for it."""

        @task
        async def busy(job: JobContext) -> None:
            for number in range(20_000):
                job.progress(number)
            await asyncio.sleep(0.1)

        @task
        async def silent() -> None: ...

        async with start(busy, silent):
            await (await silent.enqueue()).result(timeout=AT_ONCE)
            assert observer.keys("arq:progress:*") == []
            trips = RoundTrips(observer)
            job = await busy.enqueue()
            await job.result(timeout=20)
            assert trips() < 30
            (key,) = observer.keys("arq:progress:*")
            assert 0 < observer.ttl(key) <= 60

    async def test_reports_that_redis_does_not_take_cost_the_job_nothing(
        self, start: StartWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nor do those that it answers too late. The job's outcome stands."""
        write = ProgressRecords.write

        async def away(records: ProgressRecords, queue: str, job_id: str, record: ProgressRecord, kept: int) -> None:
            if record.done == 1:
                raise ConnectionError("away")
            await asyncio.sleep(5)
            await write(records, queue, job_id, record, kept)

        monkeypatch.setattr(ProgressRecords, "write", away)
        async with start(steps):
            assert await (await steps.enqueue(2, 0.6)).result(timeout=AT_ONCE) == "imported"

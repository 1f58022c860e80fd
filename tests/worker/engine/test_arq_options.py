"""Settings of arq's worker in the engine: `retry_jobs`, `max_burst_jobs`, `log_results`, `health_check_key`."""

import asyncio
import logging
from typing import Any

import arq
import pytest
from arq.worker import RetryJob

from tests.waiting import eventually
from tests.worker.engine.conftest import Seen, StartWorker
from worker import Job, JobContext, JobStatus, Retry, Task, task
from worker.broker.records import Claim
from worker.client.options import TaskOptions
from worker.engine.arq_options import ArqOptions
from worker.engine.burst_slots import BurstSlots
from worker.errors import JobFailed


@task(keep_result=60)
async def add(one: int) -> int:
    return one + 1


def arqs(body: Any) -> Task[Any, Any]:
    """A task that came by arq's `func()`."""
    return Task(body, body.__name__, TaskOptions(), is_arq=True)


async def asks_arq(ctx: JobContext) -> None:
    raise arq.Retry(defer=0.01)


async def asks_arq_at_once(ctx: JobContext) -> None:
    raise RetryJob


async def cancels_itself(ctx: JobContext) -> None:
    raise asyncio.CancelledError


async def asks(ctx: JobContext) -> None:
    raise Retry(defer=0.01)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (asks_arq, pytest.raises(JobFailed, match="Retry")),
        (asks_arq_at_once, pytest.raises(JobFailed, match="RetryJob")),
        (cancels_itself, pytest.raises(asyncio.CancelledError)),
        (asks, pytest.raises(JobFailed, match="Retry")),
    ],
)
async def test_without_retry_jobs_a_job_that_asks_to_run_again_fails(start: StartWorker, body: Any, error: Any) -> None:
    """At its first try, with what it raised."""
    one = arqs(body)
    async with start(one, arq=ArqOptions(retry_jobs=False)) as worker:
        job: Job[Any] = await one.enqueue()
        await worker.idle()
        with error:
            await job.result(timeout=5)
        assert (worker.engine.counts["retried"], worker.engine.counts["failed"]) == (0, 1)


async def test_max_burst_jobs_limits_the_attempts_that_start(start: StartWorker) -> None:
    """Also those of a retried job. The worker is then idle, and the other jobs wait."""
    jobs = [await add.enqueue(number) for number in range(9)]
    async with start(add, arq=ArqOptions(max_burst_jobs=5), concurrency=4) as worker:
        await worker.idle()
        assert worker.engine.counts["done"] == 5
        statuses = [await job.status() for job in jobs]
        assert (statuses.count(JobStatus.complete), statuses.count(JobStatus.queued)) == (5, 4)


async def test_max_burst_jobs_of_0_starts_none(start: StartWorker) -> None:
    """As in arq."""
    job = await add.enqueue(1)
    async with start(add, arq=ArqOptions(max_burst_jobs=0)) as worker:
        await worker.idle()
        assert await job.status() == JobStatus.queued


async def test_fewer_jobs_than_max_burst_jobs_all_run(start: StartWorker) -> None:
    """The burst ends when the queue is empty."""
    for number in range(3):
        await add.enqueue(number)
    async with start(add, arq=ArqOptions(max_burst_jobs=5)) as worker:
        await worker.idle()
        assert worker.engine.counts["done"] == 3


def test_slots_of_a_burst_are_as_many_as_may_still_start() -> None:
    """However many are given back."""
    slots, claim = BurstSlots(4, 6), Claim(b"1", b"{}", b"0", tries=0, crashes=0, abort_at=None)
    free = [slots.free]
    for _ in range(2):
        slots.take([claim] * slots.free)
        for _ in range(4):
            slots.give_back(claim)
        free.append(slots.free)
    assert (free, slots.are_used_up) == ([4, 2, 0], True)


async def test_without_log_results_the_log_has_no_results(start: StartWorker, caplog: pytest.LogCaptureFixture) -> None:
    """The line of the job's end is there."""
    with caplog.at_level(logging.INFO, "worker"):
        async with start(add, arq=ArqOptions(log_results=False), log_jobs="all") as worker:
            await add.enqueue(1)
            await worker.idle()
    (line,) = [record.getMessage() for record in caplog.records if "←" in record.getMessage()]
    assert line.endswith(":add ● ")


async def test_the_health_record_in_arqs_form_has_the_key_that_health_check_key_names(
    start: StartWorker, observer: Any, seen: Seen
) -> None:
    """And is deleted at the end."""
    async with start(add, arq=ArqOptions(health_check_key="mine")):
        await eventually(seen.well)
        assert b"j_complete=0" in observer.get("mine").encode()
        assert not observer.exists("arq:queue:health-check")
    assert not observer.exists("mine")

"""The broker completer: outcomes reach Redis in batches, each once, whatever happens to the connection."""

import asyncio
from typing import Any

from tests.proxy import Proxy
from tests.waiting import eventually
from tests.worker.engine.conftest import Seen, Worker
from tests.worker.new_jobs import new_job
from worker import Broker, JobContext, Retry, task
from worker.broker.scripts import Script
from worker.engine.broker_completer import BrokerCompleter
from worker.engine.execution import Execution, Phase
from worker.engine.executions import Executions
from worker.engine.limits import Limits
from worker.engine.outcome import Outcome, OutcomeKind

QUEUE = "arq:queue"


async def held_jobs(broker: Broker, number: int) -> tuple[Executions, list[Execution]]:
    """So many claimed jobs."""
    await broker.enqueue([new_job(f"j{n:04}", b"{}", QUEUE) for n in range(number)])
    held = Executions(number)
    claims = (await broker.claim(QUEUE, "o" * 28, 60_000, number)).jobs
    limits = Limits(timeout=60, max_tries=5, keep_result=60_000, lease=60)
    jobs = [Execution(claim, QUEUE, "o" * 28, 0, limits) for claim in claims]
    for job in jobs:
        held.add(job)
    return held, jobs


async def test_outcomes_are_sent_in_batches_of_five_hundred_or_eight_megabytes(
    broker: Broker, redis_url: str, observer: Any
) -> None:
    """Each batch is one round trip, and each job is released."""
    finish = Script.named("finish").sha
    async with Proxy(redis_url) as proxy:
        ours = Broker(proxy.url)
        for number, size, trips in ((1200, 1, 3), (10, 3 * 1024 * 1024, 5)):
            observer.flushdb()
            held, jobs = await held_jobs(broker, number)
            await ours.finish(QUEUE, [])  # so that the script is known
            before = proxy.count(finish)
            completer = BrokerCompleter(ours, held)
            for job in jobs:
                completer.complete(job, Outcome.completed(b"1" * size))
            assert {job.phase for job in jobs} == {Phase.FINISHING}
            running = asyncio.create_task(completer.run())
            await asyncio.wait_for(completer.flushed(), 10)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            assert proxy.count(finish) - before == trips
            assert len(held) == 0
            assert len(observer.keys("arq:result:*")) == number
        await ours.close()


async def test_an_abandoned_job_is_released_without_writing_to_redis(broker: Broker, observer: Any) -> None:
    """Another worker holds the job by now."""
    held, (job,) = await held_jobs(broker, 1)
    completer = BrokerCompleter(broker, held)
    completer.complete(job, Outcome(OutcomeKind.ABANDONED))
    await completer.flushed()
    assert len(held) == 0
    assert observer.exists("arq:in-progress:j0000")


async def test_an_outcome_whose_reply_was_lost_is_sent_again_and_counted_once(
    broker: Broker, redis_url: str, seen: Seen
) -> None:
    """The connection is lost after Redis has run the script."""
    tries: list[int] = []

    @task(max_tries=5)
    async def insist(job: JobContext) -> str:
        tries.append(job.attempt)
        if job.attempt < 3:
            raise Retry
        return "done"

    async with Proxy(redis_url) as proxy:
        worker = Worker(proxy.url, insist)
        worker.engine.start()
        first = await insist.enqueue()
        assert await first.result(timeout=30) == "done"  # the script is known by now
        tries.clear()
        trap = proxy.drop_on(Script.named("finish").sha, when="after")
        job = await insist.enqueue()
        await eventually(lambda: trap.sprung)
        assert await job.result(timeout=30) == "done"
        await worker.stop()
    assert tries == [1, 2, 3]
    assert seen.left() == set()


async def test_outcomes_of_neighbouring_loop_turns_share_a_round_trip(broker: Broker, redis_url: str) -> None:
    """A single outcome is not delayed for others."""
    finish = Script.named("finish").sha
    async with Proxy(redis_url) as proxy:
        ours = Broker(proxy.url)
        held, jobs = await held_jobs(broker, 4)
        await ours.finish(QUEUE, [])  # so that the script is known
        completer = BrokerCompleter(ours, held)
        running = asyncio.create_task(completer.run())
        await asyncio.sleep(0)
        before = proxy.count(finish)
        for job in jobs[:3]:
            completer.complete(job, Outcome.completed(b"1"))
            await asyncio.sleep(0)
        await asyncio.wait_for(completer.flushed(), 10)
        assert proxy.count(finish) - before == 1
        completer.complete(jobs[3], Outcome.completed(b"1"))
        await asyncio.wait_for(completer.flushed(), 10)
        assert proxy.count(finish) - before == 2
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert len(held) == 0
        await ours.close()

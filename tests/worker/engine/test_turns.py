"""Jobs that are claimed ahead wait their turn, for moments; and the engine that does so, on a real Redis."""

import asyncio

import pytest

from tests.waiting import eventually
from tests.worker.engine.conftest import Seen, StartWorker
from worker import task
from worker.engine import turns
from worker.engine.held import HeldJob
from worker.engine.turns import Turns
from worker.queue import Claim


def held(number: int) -> HeldJob:
    return HeldJob(Claim(b"%d" % number, b"", b"0", 0, 0, None), "arq:queue", "token", allowance=1.0)


class TestTurns:
    async def test_only_so_many_begin_at_once(self) -> None:
        """The others begin one for each that ends, in their order."""
        begun: list[HeldJob] = []
        one = Turns(2, begun.append, begun.append)
        jobs = [held(number) for number in range(4)]
        for job in jobs:
            one.take(job)
        assert begun == jobs[:2]
        one.ended(jobs[1])
        assert begun == jobs[:3]
        one.ended(jobs[0])
        assert begun == jobs
        one.ended(jobs[2])
        one.ended(jobs[3])

    async def test_only_short_jobs_are_claimed_ahead(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is before it is known how long they take, nor when they turn out to be long."""
        one = Turns(4, lambda _: None, lambda _: None)
        assert one.ahead == 0
        short = held(1)
        one.take(short)
        one.ended(short)
        assert one.ahead == 4
        monkeypatch.setattr(turns, "_SHORT", 0.0)
        assert one.ahead == 0

    async def test_who_waits_too_long_is_given_back(self) -> None:
        """A job that cannot begin soon goes back; and nothing more is claimed ahead until jobs are short again."""
        begun: list[HeldJob] = []
        back: list[HeldJob] = []
        one = Turns(1, begun.append, back.append)
        first, second = held(1), held(2)
        one.take(first)
        one.ended(first)
        one.take(first)
        one.take(second)
        assert one.ahead == 1
        await eventually(lambda: back == [second], timeout=2)
        assert one.ahead == 0
        one.ended(first)
        assert begun == [first, first]


async def test_a_long_job_keeps_no_other_waiting(start: StartWorker, seen: Seen) -> None:
    """What was claimed ahead behind jobs that are long after all runs at another worker, at no cost."""
    release = asyncio.Event()
    ran: list[str] = []

    @task
    async def quick() -> None: ...

    @task
    async def slow() -> None:
        ran.append("slow")
        await release.wait()

    @task
    async def after() -> None:
        ran.append("after")

    async with start(quick, slow, after, concurrency=1) as one:
        await quick.enqueue_many([{}] * 20)
        await one.idle()
        assert one.engine._turns.ahead == 1
        await slow.enqueue()
        jobs = await after.enqueue_many([{}] * 2)
        await eventually(lambda: ran)
        async with start(quick, slow, after, id="other", concurrency=1):
            for job in jobs:
                await job.result(timeout=5)
        assert ran == ["slow", "after", "after"]
        release.set()
    assert {seen.result(job.job_id)["t"] for job in jobs} == {1}
    assert seen.left() == set()


async def test_an_abort_reaches_who_waits(start: StartWorker) -> None:
    """A job that is told to stop before its turn has come does not begin."""
    release = asyncio.Event()
    ran: list[str] = []

    @task
    async def quick() -> None: ...

    @task
    async def slow() -> None:
        await release.wait()

    @task
    async def after() -> None:
        ran.append("after")

    monkey = pytest.MonkeyPatch()
    monkey.setattr(turns, "_SOON", 30.0)
    try:
        async with start(quick, slow, after, concurrency=1) as one:
            await quick.enqueue_many([{}] * 20)
            await one.idle()
            await slow.enqueue()
            job = await after.enqueue()
            await eventually(lambda: one.engine._turns._waiting)
            aborting = asyncio.create_task(job.abort(timeout=10))
            await eventually(lambda: one.engine._turns._waiting[0].stop)
            release.set()
            assert await aborting
    finally:
        monkey.undo()
    assert ran == []

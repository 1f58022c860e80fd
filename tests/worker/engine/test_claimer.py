"""The claimer: several queues, wakeups, and what happens while Redis is down."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.conftest import StartRedis
from tests.waiting import AT_ONCE, at_once, eventually
from tests.worker.engine.conftest import Seen, StartWorker
from tests.worker.new_jobs import new_job
from worker import Broker, Job, JobContext, task
from worker.broker.records import Claim
from worker.engine import claimer
from worker.engine.claimer import Claimer
from worker.engine.slots import Slots
from worker.keeper.table import LeaseTable, TableReader

ran: list[str] = []


@task
async def note(job: JobContext) -> None:
    ran.append(job.queue)


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


class TestSeveralQueues:
    async def test_queues_are_claimed_in_order_of_priority_and_none_starves(self, start: StartWorker) -> None:
        """The first queue goes first. The last one still gets its turn while the others are full."""
        for name in ("high", "arq:queue", "low"):
            await note.using(queue=name).enqueue_many({} for _ in range(200))
        async with start(note, queues="high,arq:queue,low", concurrency=1) as worker:
            await worker.idle()
        begin = ran[:200]
        assert 150 < begin.count("high") < 200
        assert begin.count("low") >= 1
        assert sorted(ran) == sorted(["high"] * 200 + ["arq:queue"] * 200 + ["low"] * 200)

    async def test_a_job_in_any_of_its_queues_wakes_an_idle_worker(
        self, start: StartWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A job in any of its queues wakes an idle worker."""
        monkeypatch.setattr(claimer, "_POLL", 60.0)
        async with start(note, queues="high,low,{tagged}"):
            for name in ("low", "{tagged}", "high"):
                await (await note.using(queue=name).enqueue()).result(timeout=30)
        assert ran == ["low", "{tagged}", "high"]

    async def test_a_queue_whose_key_is_no_queue_does_not_affect_the_others(
        self, start: StartWorker, observer: Any
    ) -> None:
        """Their outcomes are written, and their jobs are claimed."""
        started = asyncio.Event()

        @task
        async def slow() -> str:
            started.set()
            await asyncio.sleep(0.2)
            return "done"

        async with start(slow, queues="first,second"):
            job = await slow.using(queue="second").enqueue()
            await started.wait()
            observer.set("first", "not a queue")
            assert await job.result(timeout=30) == "done"
            assert await (await slow.using(queue="second").enqueue()).result(timeout=30) == "done"
            observer.delete("first")

    async def test_a_claim_from_a_hundred_queues_is_one_round_trip(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Work in the last queue runs nearly as fast as in one queue."""
        monkeypatch.setattr(claimer, "_POLL", 60.0)
        names = [f"q{number}" for number in range(100)]
        await broker.enqueue([new_job(f"j{number}", b"{}", "q99") for number in range(6)])
        claimed: list[Claim] = []
        ours = claiming(broker, claimed, slots=8, queues=names)
        run_on, calls = broker.connections.run_on, 0

        async def counted(script: str, *others: Any) -> Any:
            nonlocal calls
            calls += script == "claim"
            return await run_on(script, *others)

        monkeypatch.setattr(broker.connections, "run_on", counted)
        running = asyncio.create_task(ours.run())
        await eventually(lambda: len(claimed) == 6, timeout=AT_ONCE)
        assert calls == 2  # at most half of the slots at once
        ours.stop()
        await at_once(running)


def claiming(broker: Broker, claimed: list[Claim], *, slots: int, queues: Sequence[str] = ("arq:queue",)) -> Claimer:
    """A claimer whose jobs are not run, but noted."""
    return Claimer(
        broker,
        queues,
        slots=Slots(slots),
        lease=5,
        start=lambda claims, *_: claimed.extend(claims),
        table=LeaseTable(slots),
        longest_lease=60.0,
    )


class TestWakeups:
    async def test_a_job_enqueued_during_a_claim_is_claimed_without_a_poll(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its notice arrives before the claim's reply."""
        monkeypatch.setattr(claimer, "_POLL", 60.0)
        claimed: list[Claim] = []
        ours = claiming(broker, claimed, slots=5)
        claim, meanwhile = broker.claim_from, asyncio.Event()

        async def slow_claim(*arguments: Any) -> Any:
            claims = await claim(*arguments)
            if not meanwhile.is_set():
                await broker.enqueue([new_job("late", b"{}", "arq:queue")])
                await asyncio.sleep(0.1)  # the notice arrives before the claim's reply
                meanwhile.set()
            return claims

        monkeypatch.setattr(broker, "claim_from", slow_claim)
        running = asyncio.create_task(ours.run())
        await eventually(lambda: [claim.raw_id for claim in claimed] == [b"late"], timeout=AT_ONCE)
        ours.stop()
        await at_once(running)

    async def test_a_deferred_job_is_claimed_when_it_is_due_not_at_the_next_poll(
        self, start: StartWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It was enqueued before the worker started."""
        monkeypatch.setattr(claimer, "_POLL", 60.0)
        jobs = await note.using(delay=0.3).enqueue_many([{}, {}])
        async with start(note):
            for job in jobs:
                await at_once(job.result())

    async def test_jobs_claimed_while_the_claimer_stops_are_still_started(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """After `stop` the claimer claims nothing more."""
        await broker.enqueue([new_job(name, b"{}", "arq:queue") for name in "ab"])
        claimed: list[Claim] = []
        ours = claiming(broker, claimed, slots=1)
        claim = broker.claim_from

        async def slow_claim(*arguments: Any) -> Any:
            claims = await claim(*arguments)
            ours.stop()
            return claims

        monkeypatch.setattr(broker, "claim_from", slow_claim)
        await asyncio.wait_for(ours.run(), 2)
        assert len(claimed) == 1
        ours._slots.give_back(claimed[0])
        await asyncio.wait_for(ours.run(), 2)  # a supervisor that runs it again
        assert len(claimed) == 1


async def test_of_a_claim_answered_late_only_jobs_whose_leases_still_hold_are_started(
    broker: Broker, observer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They get a new lease. The others are put back where they were, at no cost."""
    await broker.enqueue([new_job(name, b"{}", "arq:queue") for name in ("held", "lost")])
    claimed: list[Claim] = []
    ours = claiming(broker, claimed, slots=4)
    claim, finish = broker.claim_from, broker.finish
    put_back: list[bool] = []

    async def slow_claim(*arguments: Any) -> Any:
        claims = await claim(*arguments)
        if not put_back and claims.jobs:
            observer.delete("arq:in-progress:lost")
            observer.pexpire("arq:in-progress:held", 2_000)
            await asyncio.sleep(5 * claimer._LATE + 0.01)
        return claims

    async def noted_finish(*arguments: Any) -> Any:
        put_back.extend(await finish(*arguments))
        assert claimed == []
        assert 2_000 < observer.pttl("arq:in-progress:held") <= 5_000
        assert observer.zscore("arq:queue", "lost") <= observer.time()[0] * 1000 + 1000
        assert not observer.hexists("arq:started", "lost")
        return put_back

    monkeypatch.setattr(broker, "claim_from", slow_claim)
    monkeypatch.setattr(broker, "finish", noted_finish)
    running = asyncio.create_task(ours.run())
    await eventually(lambda: [claim.raw_id for claim in claimed] == [b"held", b"lost"])
    assert put_back == [True]
    assert [claim.crashes for claim in claimed] == [0, 0]
    assert ours._slots.free == 2
    assert {job.job_id for job in TableReader(ours._table.descriptor, ours._table.size).jobs()} == {b"held", b"lost"}
    ours.stop()
    await at_once(running)


async def test_slots_freed_in_neighbouring_loop_turns_are_filled_by_one_claim(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim is one round trip."""
    await broker.enqueue([new_job(f"j{number}", b"{}", "arq:queue") for number in range(20)])
    claimed: list[Claim] = []
    ours = claiming(broker, claimed, slots=8)
    claim = broker.claim_from
    wanted: list[int] = []

    async def noted_claim(queues: Any, token: str, lease: int, limit: int, *others: Any) -> Any:
        wanted.append(limit)
        return await claim(queues, token, lease, limit, *others)

    monkeypatch.setattr(broker, "claim_from", noted_claim)
    running = asyncio.create_task(ours.run())
    await eventually(lambda: len(claimed) == 8, timeout=AT_ONCE)
    for over in claimed[:3]:
        ours._slots.give_back(over)
        await asyncio.sleep(0)
    await eventually(lambda: len(claimed) == 11, timeout=AT_ONCE)
    assert wanted == [4, 4, 3]
    ours.stop()
    await at_once(running)


async def test_a_thousand_due_jobs_running_elsewhere_do_not_delay_the_next_job(
    start: StartWorker, broker: Broker, observer: Any, seen: Seen
) -> None:
    """A thousand due jobs that others run, a stock worker's too, do not keep the next one from starting at once."""
    with observer.pipeline() as pipe:
        for number in range(1000):
            pipe.set(f"arq:in-progress:r{number}", "1" if number % 2 else "x" * 28 + ":1", px=60_000)
            pipe.zadd("arq:queue", {f"r{number}": number + 1})
        pipe.execute()
    async with start(note):
        job = await note.enqueue()
        await at_once(job.result())
    assert observer.zcard("arq:queue") == 1000


async def recorded(broker: Broker, job: Job[Any]) -> bool:
    return (await broker.status("arq:queue", job.job_id)).result is not None


async def test_a_job_that_runs_while_redis_dies_and_comes_back_empty_ends_once(
    own_redis: StartRedis, start: StartWorker
) -> None:
    """Its result is stored, and the worker goes on."""
    server = own_redis()
    began, go_on = asyncio.Event(), asyncio.Event()
    runs: list[int] = []

    @task
    async def survive() -> str:
        runs.append(1)
        began.set()
        await go_on.wait()
        return "done"

    broker = Broker(server.url, default=True)
    async with start(survive, url=server.url) as worker:
        job = await survive.enqueue()
        await began.wait()
        server.kill()
        go_on.set()
        await asyncio.sleep(0.3)
        server.restart()
        await eventually(lambda: recorded(broker, job), timeout=10)
        assert await job.result() == "done"
        assert await (await survive.enqueue()).result(timeout=30) == "done"
        await worker.idle()
    assert len(runs) == 2
    await broker.close()

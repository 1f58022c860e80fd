"""The Lua scripts: what each of them does to a job's keys, also after other software has changed the keys."""

import asyncio
import pickle
from functools import partial
from typing import Any
from unittest.mock import ANY

import pytest
from redis import Redis
from redis.exceptions import ResponseError

from tests.redis_programs import PROGRAMS, running
from tests.waiting import eventually
from tests.worker.new_jobs import new_job
from worker import Broker, JobStatus
from worker.broker.cron_slots import CronSlots
from worker.broker.job_inspector import JobInspector
from worker.broker.keys import Keys
from worker.broker.leases import HeldLease, LeaseClient, LeaseOwner
from worker.broker.pauses import PauseCopies, QueuePause
from worker.broker.queue_state import QueueInspector
from worker.broker.records import ABORTED, Claim, Completion, CronSlot, PutBack, RunNow
from worker.broker.scripts import Script
from worker.message import encode
from worker.new_job import NewJob

QUEUE = "arq:queue"
OURS, THEIRS = "o" * 28, "t" * 28
"""Tokens of two workers."""
LEASE = 10_000  # ms
DAY = 86_400_000  # ms: arq's expires_extra_ms
STOCK_JSON = b'{"t":null,"f":"send","a":[],"k":{},"et":1}'
STOCK_PICKLE = pickle.dumps({"t": None, "f": "send", "a": (), "k": {}, "et": 1})
TANDEMS = encode("send", b"{}", 1)


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> Any:
    """The URL of a server; None for the run's own."""
    if request.param == "wheel":
        yield None
        return
    with running(request.param) as server:
        yield server.url


@pytest.fixture
def redis_url(program: str | None, redis_url: str) -> Any:
    """An empty Redis, of each program that there is."""
    if program is None:
        yield redis_url
        return
    with Redis.from_url(program) as client:
        client.flushdb()
        yield program


def entry(job_id: str = "a", payload: bytes = b"{}", **options: Any) -> NewJob:
    return new_job(job_id, payload, QUEUE, **options)


async def claim(broker: Broker, token: str = OURS, *, lease: int = LEASE, wanted: int = 100) -> list[Claim]:
    return (await broker.claim(QUEUE, token, lease, wanted)).jobs


def is_free(observer: Any, job_id: str) -> bool:
    """Whether no worker holds the job."""
    return not observer.exists(f"arq:in-progress:{job_id}")


async def claim_one(broker: Broker, token: str = OURS, **options: Any) -> Claim:
    (job,) = await claim(broker, token, **options)
    return job


async def finish(
    broker: Broker,
    action: str,
    token: str = OURS,
    job_id: str = "a",
    value: bytes = b"1",
    keep: int | None = None,
    delay: int = 0,
) -> bool:
    keep = keep if keep is not None else 60_000 if action == "end" else 0
    (ours,) = await broker.finish(QUEUE, [Completion(job_id.encode(), token, action, value, keep, delay)])
    return ours


def held(job: Claim, token: str = OURS) -> HeldLease:
    return HeldLease(job.raw_id, token, job.score, job.payload)


@pytest.fixture
def leases(redis_url: str) -> Any:
    """The heartbeat's client for leases."""
    leases = LeaseClient(redis_url, QUEUE, LEASE)
    yield leases
    leases.close()


def let_lease_end(observer: Any, job_id: str = "a") -> None:
    """End the lease, as if it had not been renewed."""
    observer.delete(f"arq:in-progress:{job_id}")
    observer.zadd(QUEUE, {job_id: 2})


class TestEnqueue:
    async def test_an_enqueued_job_is_a_payload_and_an_id_by_due_time(self, broker: Broker, observer: Any) -> None:
        """A job is two keys, arq's own: its payload for a day past its due time, and its id by due time."""
        assert await broker.enqueue([entry("a"), entry("b", delay=5_000)]) == [True, True]
        now = float(observer.time()[0])
        assert sorted(observer.keys()) == ["arq:job:a", "arq:job:b", QUEUE]
        assert observer.zscore(QUEUE, "b") - observer.zscore(QUEUE, "a") == 5_000
        assert observer.zscore(QUEUE, "a") / 1000 == pytest.approx(now, abs=2)
        assert observer.pttl("arq:job:b") - observer.pttl("arq:job:a") == pytest.approx(5_000, abs=50)
        assert observer.ttl("arq:job:a") == pytest.approx(86_400, abs=2)

    async def test_an_id_is_taken_while_its_job_waits_or_runs_or_its_result_is_kept(
        self, broker: Broker, observer: Any
    ) -> None:
        """An id is taken while its job waits, while it runs, and while its result is kept; then it is free."""
        assert await broker.enqueue([entry(), entry()]) == [True, False]
        job = await claim_one(broker)
        observer.delete("arq:job:a")  # as if it had expired
        assert await broker.enqueue([entry()]) == [False]
        await finish(broker, "end")
        assert await broker.enqueue([entry()]) == [False]
        observer.delete("arq:result:a")
        assert await broker.enqueue([entry()]) == [True]
        assert job.tries == 0

    async def test_an_abort_from_before_the_job_is_dropped(self, broker: Broker, observer: Any) -> None:
        """An abort that came before the job was enqueued does not abort it."""
        observer.zadd("arq:abort", {"a": 1})
        await broker.enqueue([entry()])
        assert not observer.exists("arq:abort")

    @pytest.mark.parametrize("verb", ["enqueue", "publish"])
    async def test_each_job_of_a_batch_has_its_own_times(self, broker: Broker, observer: Any, verb: str) -> None:
        """Each job has its own times, also where only one of them differs from those of the job before."""
        hour = 3_600_000
        now = round(float(observer.time()[0]) * 1000)
        waits = {  # until it is due, and past that
            "a": (0, hour),
            "b": (0, hour),
            "c": (0, 2 * hour),
            "d": (3 * hour, 2 * hour),
            "e": (9 * hour, 2 * hour),
            "f": (12 * hour, 2 * hour),
            "g": (12 * hour, hour),
            "h": (0, hour),
        }
        jobs = [
            new_job(name, b"{}", QUEUE, 0 if name in "efg" else wait, now + wait if name in "efg" else None, expires)
            for name, (wait, expires) in waits.items()
        ]
        await getattr(broker, verb)(jobs)
        start = observer.zscore(QUEUE, "a")
        for name, (wait, expires) in waits.items():
            assert observer.zscore(QUEUE, name) - start == pytest.approx(wait, abs=2_000)
            assert observer.pttl(f"arq:job:{name}") == pytest.approx(wait + expires, abs=5_000)

    @pytest.mark.parametrize(("delay", "expires"), [(0, 0), (10**18, 10**18), (0, 10**300)])
    async def test_no_delay_and_no_expiry_is_too_short_or_too_long(
        self, broker: Broker, observer: Any, delay: int, expires: int
    ) -> None:
        """Extreme delays and expiries are accepted."""
        assert await broker.enqueue([entry("x", delay=delay, expires=expires)]) == [True]
        assert observer.zscore(QUEUE, "x") > 0

    async def test_a_job_that_was_due_before_the_epoch_is_due(self, broker: Broker) -> None:
        """A job that was due long ago is due."""
        await broker.enqueue([entry(due=-5)])
        assert (await claim_one(broker)).raw_id == b"a"


class TestClaim:
    async def test_a_payload_that_is_too_large_is_not_read_and_its_job_is_claimed(
        self, redis_url: str, observer: Any
    ) -> None:
        """The claim has the size of the payload in its place; other jobs are claimed as usual."""
        broker = Broker(redis_url, max_payload=1000)
        await broker.enqueue([entry("a"), entry("b", b"x" * 8000), entry("c", b"x" * 8001), entry("d")])
        claimed = {job.raw_id: (job.payload, job.unread) for job in await claim(broker)}
        assert claimed == {b"a": (b"{}", 0), b"b": (b"x" * 8000, 0), b"c": (None, 8001), b"d": (b"{}", 0)}
        assert observer.strlen("arq:job:c") == 8001
        await broker.close()

    async def test_one_claim_brings_a_few_megabytes_and_the_next_one_goes_on(
        self, broker: Broker, observer: Any
    ) -> None:
        """One claim brings a few megabytes, so that its reply arrives in time; the next one goes on where it ended."""
        ids = [f"j{n:02}" for n in range(10)]
        await broker.enqueue([entry(job_id, b"x" * 1024 * 1024) for job_id in ids])
        first = await broker.claim(QUEUE, OURS, LEASE, 100)
        assert [job.raw_id.decode() for job in first.jobs] == ids[:4]
        assert first.next_due == 0
        assert len(observer.keys("arq:in-progress:*")) == 4
        rest = [job.raw_id.decode() for _ in range(3) for job in await claim(broker)]
        assert rest == ids[4:]

    async def test_a_claim_records_its_holder_and_moves_the_score_to_the_end_of_the_lease(
        self, broker: Broker, observer: Any
    ) -> None:
        """A claim records who holds the job and when it was due, and moves its score to the end of the lease."""
        await broker.enqueue([entry(payload=b"[1]")])
        due = observer.zscore(QUEUE, "a")
        job = await claim_one(broker)
        assert job == Claim(b"a", b"[1]", f"{due:.0f}".encode(), 0, 0, None)
        assert observer.get("arq:in-progress:a") == f"{OURS}:{due:.0f}"
        assert 0 < observer.pttl("arq:in-progress:a") <= LEASE
        assert observer.zscore(QUEUE, "a") >= due + LEASE
        assert observer.ttl("arq:job:a") == -1
        assert observer.hgetall("arq:started") == {"a": f"1:{OURS}"}

    async def test_a_claim_takes_the_oldest_jobs_first_and_no_more_than_wanted(self, broker: Broker) -> None:
        """The job that has been due longest is taken first; none before it is due."""
        await broker.enqueue([entry("c", due=30), entry("a", due=10), entry("b", due=20), entry("later", delay=60_000)])
        assert [job.raw_id for job in await claim(broker, wanted=2)] == [b"a", b"b"]
        claims = await broker.claim(QUEUE, OURS, 100_000, 2)
        assert [job.raw_id for job in claims.jobs] == [b"c"]
        assert claims.next_due == pytest.approx(10, abs=1)  # when the first lease ends
        assert await claim(broker) == []

    async def test_concurrent_claims_take_each_job_once(self, broker: Broker) -> None:
        """Twenty claims at once of a hundred jobs: each job is taken once."""
        await broker.enqueue([entry(str(number)) for number in range(100)])
        batches = await asyncio.gather(*(claim(broker, f"{number:028}", wanted=7) for number in range(20)))
        assert sorted(job.raw_id for batch in batches for job in batch) == sorted(b"%d" % n for n in range(100))

    async def test_jobs_that_run_elsewhere_are_skipped_and_not_looked_at_again(
        self, broker: Broker, observer: Any
    ) -> None:
        """Running jobs are skipped, and not looked at again while they run."""
        running = {f"r{number}": number for number in range(1000)}
        observer.zadd(QUEUE, running)
        with observer.pipeline() as pipe:
            for job_id in running:
                pipe.set(f"arq:in-progress:{job_id}", THEIRS + ":1", px=310_000)
            pipe.execute()
        await broker.enqueue([entry()])
        first, second = await broker.claim(QUEUE, OURS, LEASE, 10), await broker.claim(QUEUE, OURS, LEASE, 10)
        assert [job.raw_id for job in first.jobs + second.jobs] == [b"a"]
        assert observer.zcount(QUEUE, "-inf", observer.time()[0] * 1000 + 300_000) == 1

    async def test_jobs_that_stock_workers_run_are_skipped_and_stay_near_their_place(
        self, broker: Broker, observer: Any
    ) -> None:
        """A stock worker that stops, or whose job asks for a retry, leaves or adds to the score that it finds."""
        observer.zadd(QUEUE, {f"r{number}": number for number in range(1, 1001)})
        with observer.pipeline() as pipe:
            for number in range(1, 1001):
                pipe.set(f"arq:in-progress:r{number}", "1", px=310_000)
            pipe.execute()
        await broker.enqueue([entry()])
        first, second = await broker.claim(QUEUE, OURS, LEASE, 10), await broker.claim(QUEUE, OURS, LEASE, 10)
        assert [job.raw_id for job in first.jobs + second.jobs] == [b"a"]
        observer.delete("arq:in-progress:r7")  # as a stock worker does when it stops
        scores = [score for _, score in observer.zrange(QUEUE, 0, 999, withscores=True)]
        assert max(scores) <= observer.time()[0] * 1000 + 1_500
        assert await eventually(lambda: claim(broker, THEIRS), timeout=5)

    async def test_a_running_job_that_other_software_makes_due_is_not_claimed_again(
        self, broker: Broker, observer: Any
    ) -> None:
        """A running job that other software makes due is not taken a second time."""
        await broker.enqueue([entry()])
        await claim_one(broker)
        observer.zadd(QUEUE, {"a": 1})
        assert await claim(broker, THEIRS) == []
        assert observer.zscore(QUEUE, "a") > 1

    async def test_a_claim_that_was_never_finished_counts_as_a_crash(self, broker: Broker, observer: Any) -> None:
        """A claim that was never finished counts as a crash; finishing the job resets the count."""
        await broker.enqueue([entry()])
        for crashes in range(3):
            assert (await claim_one(broker)).crashes == crashes
            let_lease_end(observer)
        assert (await claim_one(broker)).crashes == 3
        await finish(broker, "again")
        assert (await claim_one(broker)).crashes == 0

    @pytest.mark.parametrize("key", ["arq:job:a", "arq:retry:a", "arq:abort", "arq:started", "arq:in-progress:a"])
    @pytest.mark.parametrize("garbage", ["list", "text"])
    async def test_garbage_in_the_keys_of_a_job_stops_neither_its_claim_nor_its_end(
        self, broker: Broker, observer: Any, key: str, garbage: str
    ) -> None:
        """Values that other software has left in a job's keys stop neither a claim nor the job's end."""
        await broker.enqueue([entry(), entry("b")])
        observer.delete(key)
        if garbage == "list":
            observer.rpush(key, "x")
        else:
            observer.set(key, "-1e999 x")
        taken = {job.raw_id: job for job in await claim(broker)}
        assert b"b" in taken
        if key != "arq:in-progress:a":
            assert (taken[b"a"].tries, taken[b"a"].crashes) == (0, 0)
            assert await finish(broker, "again")
            (job,) = await claim(broker)
            assert job.tries == 1
            assert await finish(broker, "end")
            assert observer.get("arq:result:a") == "1"
        else:
            assert 0 < observer.pttl(key) <= LEASE  # a lease without end would hold it for ever

    async def test_jobs_that_crashed_twice_are_claimed_one_at_a_time_and_delay_no_others(
        self, broker: Broker, observer: Any
    ) -> None:
        """Jobs whose workers have died twice are claimed one at a time; other jobs do not wait for them."""
        await broker.enqueue([entry("s1"), entry("s2"), entry("good")])
        observer.hset("arq:started", mapping={"s1": f"2:{THEIRS}", "s2": f"5:{THEIRS}"})
        first = await broker.claim(QUEUE, OURS, LEASE, 10, 1)
        assert [(job.raw_id, job.is_suspect) for job in first.jobs] == [(b"good", False), (b"s1", True)]
        assert (await broker.claim(QUEUE, OURS, LEASE, 10, 0)).jobs == []
        assert not observer.exists("arq:in-progress:s2")
        assert observer.hget("arq:started", "s2") == f"5:{THEIRS}"
        observer.zadd(QUEUE, {"s2": 2})
        assert [job.crashes for job in await claim(broker)] == [5]

    @pytest.mark.parametrize("score", ["-inf", "1e300", "inf", "-1e300", "0.5"])
    async def test_any_score_that_redis_can_store_is_accepted(self, broker: Broker, observer: Any, score: str) -> None:
        """A job with a score in the past is claimed once, one in the future is not."""
        observer.execute_command("ZADD", QUEUE, score, "x")
        assert len(await claim(broker)) == (float(score) < 1)
        assert await claim(broker) == []

    @pytest.mark.parametrize(
        ("payload", "expires", "is_asked"),
        [
            (STOCK_PICKLE, 60_000, True),
            (STOCK_JSON, 60_000, True),
            (STOCK_JSON, 36 * 3_600_000, True),
            (STOCK_JSON, DAY, False),
            (TANDEMS, 60_000, False),
        ],
    )
    async def test_a_stock_producers_expires_goes_on_while_the_job_runs(
        self, broker: Broker, observer: Any, payload: bytes, expires: int, is_asked: bool
    ) -> None:
        """If it has set `_expires`. A job that waits for arq's day, or is Tandem's, does not expire once it runs."""
        await broker.enqueue([entry(payload=payload, expires=expires)])
        left: Any = pytest.approx(expires if is_asked else 0, abs=5_000)
        assert await claim_one(broker) == Claim(b"a", payload, ANY, 0, 0, None, expires_in=left)
        assert observer.pttl("arq:job:a") == (pytest.approx(expires, abs=5_000) if is_asked else -1)

    async def test_a_deferred_job_of_a_stock_producer_has_arqs_day_after_its_due_time(
        self, broker: Broker, observer: Any
    ) -> None:
        """So that is no `_expires` of its own; a shorter expiry is one."""
        for job_id, expires in (("a", DAY), ("b", DAY - 3_600_000)):
            await broker.enqueue([entry(job_id, STOCK_JSON, delay=100, expires=expires)])
        await eventually(lambda: _is_due(observer, "a", "b"))
        assert {job.raw_id: job.expires_in > 0 for job in await claim(broker)} == {b"a": False, b"b": True}

    @pytest.mark.parametrize("action", ["again", "later", "back"])
    async def test_the_payload_of_a_job_that_expires_while_it_runs_is_not_restored(
        self, broker: Broker, observer: Any, action: str
    ) -> None:
        """Its next claim finds none, as in arq. One that has not expired keeps its expiry."""
        for job_id, expires in (("a", 60_000), ("b", 60_000)):
            await broker.enqueue([entry(job_id, STOCK_JSON, expires=expires)])
        observer.pexpire("arq:job:a", 20)
        jobs = await claim(broker)
        await eventually(lambda: not observer.exists("arq:job:a"))
        await broker.finish(
            QUEUE, [Completion(job.raw_id, OURS, action, job.payload_to_restore, keep=1) for job in jobs]
        )
        found = {job.raw_id: (job.payload, job.expires_in > 0) for job in await claim(broker)}
        assert found == {b"a": (None, False), b"b": (STOCK_JSON, True)}
        assert observer.pttl("arq:job:b") == pytest.approx(60_000, abs=5_000)


def _is_due(observer: Any, *job_ids: str) -> bool:
    now = float(observer.time()[0]) * 1000 + observer.time()[1] / 1000
    return all(observer.zscore(QUEUE, job_id) < now for job_id in job_ids)


class TestFinish:
    async def test_end_leaves_the_result_and_nothing_else(self, broker: Broker, observer: Any) -> None:
        """The end of a job leaves its result, for as long as it is kept, and nothing else."""
        await broker.enqueue([entry()])
        await claim_one(broker)
        assert await finish(broker, "end", value=b"[2]", keep=5_000)
        assert observer.keys() == ["arq:result:a"]
        assert observer.get("arq:result:a") == "[2]"
        assert 0 < observer.pttl("arq:result:a") <= 5_000

    @pytest.mark.parametrize(("value", "keep"), [(b"", 5_000), (b"1", 0)])
    async def test_end_without_a_result_to_keep_leaves_nothing(
        self, broker: Broker, observer: Any, value: bytes, keep: int
    ) -> None:
        """Without a result to keep nothing is left."""
        await broker.enqueue([entry()])
        await claim_one(broker)
        await finish(broker, "end", value=value, keep=keep)
        assert observer.keys() == []

    async def test_again_counts_a_try_and_queues_the_job_after_the_delay(self, broker: Broker, observer: Any) -> None:
        """A failed try is counted, and followed by another after the delay."""
        await broker.enqueue([entry()])
        await claim_one(broker)
        await finish(broker, "again", delay=5_000)
        assert observer.get("arq:retry:a") == "1"
        assert observer.zscore(QUEUE, "a") / 1000 == pytest.approx(observer.time()[0] + 5, abs=2)
        assert not observer.exists("arq:in-progress:a", "arq:started")
        observer.zadd(QUEUE, {"a": 2})
        assert (await claim_one(broker)).tries == 1

    async def test_back_returns_the_job_to_its_place_in_the_queue_at_no_cost(
        self, broker: Broker, observer: Any
    ) -> None:
        """An interrupted job goes back to its place in the queue, and no try is counted."""
        await broker.enqueue([entry(due=12_345)])
        await claim_one(broker)
        await finish(broker, "back")
        assert observer.zscore(QUEUE, "a") == 12_345
        assert sorted(observer.keys()) == ["arq:job:a", QUEUE]

    async def test_later_queues_the_job_after_the_delay_at_no_cost(self, broker: Broker, observer: Any) -> None:
        """A postponed job is due again after the delay, and no try is counted."""
        await broker.enqueue([entry()])
        await claim_one(broker)
        await finish(broker, "later", delay=5_000)
        assert observer.zscore(QUEUE, "a") / 1000 == pytest.approx(observer.time()[0] + 5, abs=2)
        assert sorted(observer.keys()) == ["arq:job:a", QUEUE]

    @pytest.mark.parametrize("action", ["end", "again", "back", "later"])
    async def test_a_worker_that_lost_its_lease_to_another_cannot_finish_the_job(
        self, broker: Broker, observer: Any, action: str
    ) -> None:
        """Finishing a job that another worker holds by now changes nothing."""
        await broker.enqueue([entry()])
        await claim_one(broker, OURS)
        let_lease_end(observer)
        await claim_one(broker, THEIRS)
        before = {key: observer.dump(key) for key in observer.keys("*")}
        assert not await finish(broker, action, OURS)
        assert {key: observer.dump(key) for key in observer.keys("*")} == before

    @pytest.mark.parametrize("action", ["end", "again", "back", "later"])
    async def test_the_result_of_the_later_holder_stands(self, broker: Broker, observer: Any, action: str) -> None:
        """A worker that lost its lease comes too late for a job that its later holder has ended."""
        await broker.enqueue([entry()])
        await claim_one(broker, OURS)
        let_lease_end(observer)
        await claim_one(broker, THEIRS)
        await finish(broker, "end", THEIRS, value=b"theirs")
        await finish(broker, action, OURS, value=b"ours")
        assert observer.get("arq:result:a") == "theirs"
        assert not observer.exists("arq:job:a", QUEUE)

    @pytest.mark.parametrize("action", ["end", "again", "back", "later"])
    async def test_a_worker_that_lost_its_lease_does_not_touch_a_later_job_of_the_id(
        self, broker: Broker, observer: Any, action: str
    ) -> None:
        """A worker that lost its lease does not finish a later job of the same id, which waits."""
        await broker.enqueue([entry()])
        await claim_one(broker, OURS)
        let_lease_end(observer)
        await claim_one(broker, THEIRS)
        await finish(broker, "end", THEIRS, keep=0)
        await broker.enqueue([entry(payload=b"new")])
        assert not await finish(broker, action, OURS)
        assert (await claim_one(broker, THEIRS)).payload == b"new"

    async def test_a_job_whose_lease_ended_unclaimed_can_still_be_finished(self, broker: Broker, observer: Any) -> None:
        """If no other worker has claimed the job since its lease ended, its worker can still finish it."""
        await broker.enqueue([entry()])
        await claim_one(broker)
        let_lease_end(observer)
        assert await finish(broker, "end")
        assert observer.get("arq:result:a") == "1"
        assert not observer.exists("arq:job:a", QUEUE, "arq:started")

    async def test_finishing_a_job_a_second_time_counts_nothing_twice(self, broker: Broker, observer: Any) -> None:
        """A repeated call, as after a lost reply, counts nothing twice."""
        await broker.enqueue([entry(), entry("b")])
        await claim(broker)
        assert await finish(broker, "again")
        assert not await finish(broker, "again")
        assert observer.get("arq:retry:a") == "1"
        assert await finish(broker, "end", job_id="b", value=b"1")
        assert await finish(broker, "end", job_id="b", value=b"1")
        assert await broker.enqueue([entry("b")]) == [False]

    @pytest.mark.parametrize(("action", "keys"), [("end", {"arq:result:a"}), ("again", {"arq:job:a", "arq:retry:a"})])
    async def test_finishing_after_a_flush_records_the_result_or_restores_the_job(
        self, broker: Broker, observer: Any, action: str, keys: set[str]
    ) -> None:
        """After Redis lost everything a result is recorded all the same, and a job that is to run again is restored."""
        await broker.enqueue([entry(payload=b"[1]")])
        job = await claim_one(broker)
        observer.flushdb()
        assert await finish(broker, action, value=job.payload or b"")
        assert keys <= set(observer.keys())
        if action == "again":
            assert (await claim_one(broker)).payload == b"[1]"

    async def test_an_ended_job_is_not_reacquired_by_a_late_heartbeat(
        self, broker: Broker, observer: Any, leases: LeaseClient
    ) -> None:
        """A heartbeat that reacquires a lost lease does not bring back a job that has ended meanwhile."""
        await broker.enqueue([entry()])
        job = await claim_one(broker)
        observer.flushdb()
        await finish(broker, "end", keep=0)
        assert leases.reacquire([held(job)]) == [False]
        assert not observer.exists(QUEUE, "arq:job:a")
        assert (await broker.status(QUEUE, "a")).status is JobStatus.not_found
        assert await broker.enqueue([entry(payload=b"new")]) == [
            True
        ]  # the id is free although the ended job left a marker
        assert leases.reacquire([held(job)]) == [False]
        assert (await claim_one(broker, THEIRS)).payload == b"new"


class TestRenew:
    async def test_a_renewal_extends_the_lease_and_keeps_the_score_at_its_end(
        self, broker: Broker, observer: Any, leases: LeaseClient
    ) -> None:
        """A renewal extends the lease, and keeps the job's score at its end."""
        await broker.enqueue([entry()])
        job = await claim_one(broker, lease=1_000)
        observer.zadd(QUEUE, {"a": 1})
        assert leases.renew([held(job)]) == [(LeaseOwner.OURS, None)]
        assert observer.pttl("arq:in-progress:a") > 1_000
        assert observer.zscore(QUEUE, "a") > observer.time()[0] * 1000

    async def test_a_renewal_reports_the_holder_of_a_lost_lease_and_changes_nothing(
        self, broker: Broker, observer: Any, leases: LeaseClient
    ) -> None:
        """A renewal reports whether a lost lease is another worker's or free, and changes nothing of it."""
        await broker.enqueue([entry("a"), entry("b")])
        jobs = [held(job) for job in await claim(broker)]
        observer.set("arq:in-progress:a", THEIRS + ":1", px=5_000)
        observer.delete("arq:in-progress:b")
        assert leases.renew(jobs) == [(LeaseOwner.ANOTHERS, None), (LeaseOwner.NOBODYS, None)]
        assert observer.pttl("arq:in-progress:a") <= 5_000
        assert not observer.exists("arq:in-progress:b")

    async def test_a_renewal_reports_aborts_and_drops_outdated_ones(
        self, broker: Broker, observer: Any, leases: LeaseClient
    ) -> None:
        """A renewal reports aborts of running jobs; outdated abort marks are removed."""
        await broker.enqueue([entry("a"), entry("b")])
        jobs = {job.raw_id: held(job) for job in await claim(broker)}
        observer.zadd("arq:abort", {"long ago": 1})
        assert await broker.abort(QUEUE, "a")
        (_, aborted), (_, not_aborted) = leases.renew([jobs[b"a"], jobs[b"b"]])
        assert aborted is not None
        assert not_aborted is None
        assert observer.zrange("arq:abort", 0, -1) == ["a"]

    async def test_garbage_in_one_lease_does_not_cost_the_others(
        self, broker: Broker, observer: Any, leases: LeaseClient
    ) -> None:
        """A value that other software has put into one lease does not cost the other leases."""
        await broker.enqueue([entry("a"), entry("b")])
        jobs = [held(job) for job in await claim(broker)]
        observer.delete("arq:in-progress:a")
        observer.rpush("arq:in-progress:a", "x")
        observer.set("arq:abort", "x")
        assert leases.renew(jobs) == [(LeaseOwner.NOBODYS, None), (LeaseOwner.OURS, None)]


class TestReacquire:
    async def test_a_running_job_is_reacquired_with_all_its_keys_after_a_flush(
        self, broker: Broker, observer: Any, leases: LeaseClient
    ) -> None:
        """After Redis lost everything a running job is reacquired, with all its keys."""
        await broker.enqueue([entry(payload=b"[1]")])
        job = await claim_one(broker)
        observer.flushdb()
        assert leases.reacquire([held(job)]) == [True]
        assert observer.get("arq:job:a") == "[1]"
        assert observer.get("arq:in-progress:a") == f"{OURS}:{job.score.decode()}"
        assert observer.zscore(QUEUE, "a") > observer.time()[0] * 1000
        assert await finish(broker, "end")
        assert observer.keys() == ["arq:result:a"]

    async def test_an_ended_lease_that_no_other_worker_took_is_reacquired(
        self, broker: Broker, observer: Any, leases: LeaseClient
    ) -> None:
        """A lease that ended, and whose job no other worker claimed, is reacquired."""
        await broker.enqueue([entry()])
        job = await claim_one(broker)
        let_lease_end(observer)
        assert leases.reacquire([held(job)]) == [True]
        assert await claim(broker, THEIRS) == []

    async def test_a_lease_that_another_worker_holds_is_not_reacquired(
        self, broker: Broker, observer: Any, leases: LeaseClient
    ) -> None:
        """A job that another worker holds is not taken from it."""
        await broker.enqueue([entry()])
        job = await claim_one(broker, OURS)
        let_lease_end(observer)
        await claim_one(broker, THEIRS)
        assert leases.reacquire([held(job)]) == [False]
        assert observer.get("arq:in-progress:a").startswith(THEIRS)

    @pytest.mark.parametrize("action", ["end", "again", "back"])
    async def test_a_job_that_another_worker_ended_or_put_back_is_not_reacquired(
        self, broker: Broker, observer: Any, leases: LeaseClient, action: str
    ) -> None:
        """A job that another worker has ended or put back since is not reacquired."""
        await broker.enqueue([entry()])
        job = await claim_one(broker, OURS)
        let_lease_end(observer)
        await claim_one(broker, THEIRS)
        await finish(broker, action, THEIRS)
        before = set(observer.keys())
        assert leases.reacquire([held(job)]) == [False]
        assert set(observer.keys()) == before

    async def test_a_later_job_of_the_id_is_not_reacquired(
        self, broker: Broker, observer: Any, leases: LeaseClient
    ) -> None:
        """A later job of the same id is not taken for the one that was lost."""
        await broker.enqueue([entry()])
        job = await claim_one(broker, OURS)
        observer.flushdb()
        await broker.enqueue([entry(payload=b"new")])
        assert leases.reacquire([held(job)]) == [False]
        assert (await claim_one(broker, THEIRS)).payload == b"new"


async def release(broker: Broker, *jobs: tuple[str, str]) -> list[int]:
    """Release jobs, each with the token of the worker that has died."""
    keys = Keys.of(QUEUE)
    words = [word for job in jobs for word in job]
    replies: list[int] = await Script.named("release").run(broker.redis, [QUEUE], [keys.prefix, keys.wake, *words])
    return replies


class TestRelease:
    async def test_a_dead_workers_job_is_due_at_once_and_its_crash_is_counted(
        self, broker: Broker, observer: Any
    ) -> None:
        """A dead worker's job is due at once, wakes others, and its next claim counts a crash."""
        await broker.enqueue([entry(payload=b"[1]")])
        await claim_one(broker)
        woken = asyncio.Event()
        async with broker.woken(QUEUE, woken):
            await asyncio.wait_for(woken.wait(), 5)  # it is subscribed to
            woken.clear()
            assert await release(broker, ("a", OURS)) == [1]
            await asyncio.wait_for(woken.wait(), 5)
        job = await claim_one(broker, THEIRS)
        assert (job.payload, job.tries, job.crashes) == (b"[1]", 0, 1)
        assert observer.get("arq:in-progress:a").startswith(THEIRS)

    async def test_a_release_leaves_finished_jobs_and_those_of_other_workers_as_they_are(
        self, broker: Broker, observer: Any
    ) -> None:
        """A finished job does not come back; a job that another worker holds, or has put back, stays as it is."""
        await broker.enqueue([entry(name) for name in ("ended", "later", "taken", "lost")])
        await claim(broker)
        await finish(broker, "end", job_id="ended")
        await finish(broker, "later", job_id="later", delay=60_000)
        observer.set("arq:in-progress:taken", f"{THEIRS}:1")
        observer.delete("arq:in-progress:lost")
        observer.rpush("arq:in-progress:garbage", "x")
        before = {key: observer.dump(key) for key in observer.scan_iter()}
        names = ("ended", "later", "taken", "lost", "garbage", "unknown")
        assert await release(broker, *((name, OURS) for name in names)) == [0] * 6
        assert {key: observer.dump(key) for key in observer.scan_iter()} == before


class TestAbort:
    async def test_an_abort_of_an_unknown_job_leaves_nothing_behind(self, broker: Broker, observer: Any) -> None:
        """An abort of a job that does not exist leaves nothing behind."""
        assert not await broker.abort(QUEUE, "a")
        assert observer.keys() == []

    async def test_an_abort_makes_a_deferred_job_due_at_once(self, broker: Broker) -> None:
        """A deferred job is made due at once, so that a worker ends it."""
        await broker.enqueue([entry(delay=60_000)])
        assert await broker.abort(QUEUE, "a")
        assert (await claim_one(broker)).abort_at is not None

    async def test_leftovers_of_an_earlier_job_of_the_id_do_not_delay_an_abort(
        self, broker: Broker, observer: Any
    ) -> None:
        """A key that an earlier job of the id has left does not keep a deferred job from being made due."""
        await broker.enqueue([entry(delay=60_000)])
        observer.set("arq:in-progress:a", "ended", px=5000)
        assert await broker.abort(QUEUE, "a")
        assert (await claim_one(broker)).abort_at is not None

    async def test_a_deferred_job_does_not_run_between_the_two_steps_of_a_stock_clients_abort(
        self, broker: Broker, observer: Any
    ) -> None:
        """A stock client first makes a deferred job due, then marks it as aborted: it is not run in between."""
        await broker.enqueue([entry(delay=60_000)])
        observer.zadd(QUEUE, {"a": 1})
        assert await claim(broker) == []
        observer.zadd("arq:abort", {"a": 1})
        observer.zadd(QUEUE, {"a": 1})
        assert (await claim_one(broker)).abort_at == 1

    async def test_an_abort_leaves_a_running_job_in_its_place(self, broker: Broker) -> None:
        """A running job stays where it is."""
        await broker.enqueue([entry()])
        await claim_one(broker)
        assert await broker.abort(QUEUE, "a")
        assert await claim(broker, THEIRS) == []

    @pytest.mark.parametrize("in_ledger", [False, True])
    async def test_an_abort_with_an_enqueue_time_aborts_no_other_job_of_the_id(
        self, broker: Broker, observer: Any, in_ledger: bool
    ) -> None:
        """An abort with the enqueue time of an earlier job does not abort the job that has its id now."""
        kwargs = b'{"o":{"et":2000},"s":"\\",\\"et\\":2000}"}'
        await broker.enqueue([entry(payload=encode("send", kwargs, 3_000, in_ledger=in_ledger))])
        assert not await broker.abort(QUEUE, "a", 2_000)
        assert not observer.exists("arq:abort")
        assert await broker.abort(QUEUE, "a", 3_000)
        assert await broker.abort(QUEUE, "a")

    async def test_a_job_whose_payload_is_lost_can_be_aborted(self, broker: Broker, observer: Any) -> None:
        """Without a payload the enqueue time is unknown, so the job may be the one that is meant."""
        await broker.enqueue([entry()])
        observer.delete("arq:job:a")
        assert await broker.abort(QUEUE, "a", 2_000)

    async def test_an_abort_is_dated_after_its_job_also_if_the_producers_clock_is_ahead(self, broker: Broker) -> None:
        """The abort is dated after the job, so that it does not pass for an abort of an earlier job."""
        years_ahead = 4_000_000_000_000
        await broker.enqueue([entry(payload=encode("send", b"{}", years_ahead))])
        assert await broker.abort(QUEUE, "a")
        abort_at = (await claim_one(broker)).abort_at
        assert abort_at is not None
        assert abort_at >= years_ahead


class TestAfterAnAbort:
    """The result of an aborted job is kept, and does not keep its id."""

    RESULT = ABORTED + b'2000,"r":"it was aborted"}'

    @pytest.fixture(autouse=True)
    async def _an_aborted_job(self, broker: Broker) -> None:
        await broker.enqueue([entry()])
        await claim_one(broker)
        await finish(broker, "end", value=self.RESULT)
        trace = await broker.status(QUEUE, "a")
        assert (trace.status, trace.holds_id) == (JobStatus.complete, False)

    @pytest.mark.parametrize("verb", ["enqueue", "publish"])
    async def test_a_new_job_gets_the_id_and_the_aborted_one_can_still_be_asked_for(
        self, broker: Broker, observer: Any, verb: str
    ) -> None:
        """A new job gets the id. A caller that asks for the aborted job by its enqueue time still gets its end."""
        assert await getattr(broker, verb)([entry(payload=b"new")]) == [True]
        new = await broker.status(QUEUE, "a")
        assert (new.payload, new.result, new.status, new.set_aside) == (b"new", None, JobStatus.queued, None)
        assert (await broker.status(QUEUE, "a", 2_000)).set_aside == self.RESULT
        assert (await broker.status(QUEUE, "a", 3_000)).set_aside is None
        assert 0 < observer.pttl("arq:aborted:a:2000") <= 60_000

    async def test_a_result_that_only_mentions_an_abort_keeps_the_id(self, broker: Broker, observer: Any) -> None:
        """Only the result of an aborted job frees the id."""
        observer.set("arq:result:a", '{"r":{"aborted":2000}}')
        assert (await broker.status(QUEUE, "a")).holds_id
        assert await broker.enqueue([entry(payload=b"new")]) == [False]

    async def test_the_id_is_taken_while_the_new_job_waits(self, broker: Broker) -> None:
        """A third job does not get the id."""
        assert await broker.enqueue([entry(), entry()]) == [True, False]
        assert (await broker.status(QUEUE, "a")).holds_id


class TestCronSlots:
    async def test_a_cron_slot_is_queued_once_and_none_before_it_afterwards(
        self, broker: Broker, observer: Any
    ) -> None:
        """A slot is queued once, and none before it after that."""
        slots = [CronSlot("tick", moment, f"cron:tick:{moment}", b"{}") for moment in (1, 2, 3)]
        assert await CronSlots(broker.connections).add(QUEUE, slots[1:2]) == [True]
        assert await CronSlots(broker.connections).add(QUEUE, slots) == [False, False, True]
        assert observer.zrange(QUEUE, 0, -1) == ["cron:tick:2", "cron:tick:3"]
        assert {
            task: moment.timestamp() for task, moment in (await CronSlots(broker.connections).last(QUEUE)).items()
        } == {"tick": 0.003}

    async def test_a_cron_slot_without_a_payload_is_recorded_and_not_queued(
        self, broker: Broker, observer: Any
    ) -> None:
        """A slot without a payload is only recorded."""
        assert await CronSlots(broker.connections).add(QUEUE, [CronSlot("tick", 5, "x", b"")]) == [True]
        assert observer.keys() == ["arq:slots"]

    @pytest.mark.parametrize("garbage", ["x", "9" * 40, "-1", "1e5"])
    async def test_garbage_in_the_recorded_cron_slots_counts_as_none(
        self, broker: Broker, observer: Any, garbage: str
    ) -> None:
        """A recorded value that is no time counts as no slot."""
        observer.hset("arq:slots", "tick", garbage)
        assert await CronSlots(broker.connections).last(QUEUE) == {}


async def test_scripts_are_sent_again_after_a_script_flush(broker: Broker, observer: Any) -> None:
    """A server that has forgotten the scripts is sent their text again."""
    await broker.enqueue([entry()])
    observer.script_flush()
    await claim_one(broker)
    observer.script_flush()
    assert await finish(broker, "end")


async def test_all_keys_of_a_hash_tagged_queue_have_its_tag(broker: Broker, observer: Any) -> None:
    """All keys of a hash-tagged queue lie under its tag."""
    await broker.enqueue([new_job("a", b"{}", "{mail}")])
    (job,) = (await broker.claim("{mail}", OURS, LEASE, 1)).jobs
    assert observer.keys() == [key for key in observer.keys("*") if key.startswith("{mail}")]
    await broker.finish("{mail}", [Completion(job.raw_id, OURS, "end", b"1", 60_000, 0)])
    assert observer.keys() == ["{mail}:result:a"]


class TestPause:
    async def test_of_a_paused_queue_nothing_is_claimed_but_aborted_jobs(self, broker: Broker) -> None:
        """Once the pause is over, everything is."""
        copies = PauseCopies(broker.connections)
        await broker.enqueue([entry("a"), entry("b"), entry("later", delay=60_000)])
        await copies.write(QUEUE, QueuePause(1, "ann"))
        assert await claim(broker) == []
        await broker.abort(QUEUE, "b")
        assert [job.raw_id for job in await claim(broker)] == [b"b"]
        assert await claim(broker) == []
        await copies.write(QUEUE, None)
        assert [job.raw_id for job in await claim(broker)] == [b"a"]

    async def test_of_a_drained_queue_only_jobs_that_were_due_before_are_claimed(
        self, broker: Broker, observer: Any
    ) -> None:
        """A job with the same due time as the drain is one of them."""
        await broker.enqueue([entry("a"), entry("b", delay=5)])
        due = int(observer.zscore(QUEUE, "a"))
        await asyncio.sleep(0.01)
        await PauseCopies(broker.connections).write(QUEUE, QueuePause(1, "ann", due_before=due))
        assert [job.raw_id for job in await claim(broker)] == [b"a"]
        assert await claim(broker) == []

    async def test_a_pause_is_read_as_it_was_written_and_expires_at_its_end(
        self, broker: Broker, observer: Any
    ) -> None:
        """The claim tells when it ends, so that a worker claims again then."""
        end = int(float(observer.time()[0]) * 1000) + 60_000
        pause = QueuePause(1, "ann\x1b", end, 7, is_durable=False)
        await PauseCopies(broker.connections).write(QUEUE, pause)
        (copy,) = (await PauseCopies(broker.connections).read([QUEUE])).values()
        assert copy is not None
        assert QueuePause.decode(copy) == pause
        assert 0 < observer.pttl(f"{QUEUE}:paused") <= 60_000
        await broker.enqueue([entry("a")])
        claims = await broker.claim(QUEUE, OURS, LEASE, 1)
        assert claims.jobs == []
        assert claims.next_due == pytest.approx(60, abs=2)

    @pytest.mark.parametrize("copy", ["", "x", "-inf {}", "12 []", "nan"])
    async def test_a_copy_of_other_software_pauses_the_queue(self, broker: Broker, observer: Any, copy: str) -> None:
        """It stops neither the claim nor its reading."""
        await broker.enqueue([entry("a")])
        observer.set(f"{QUEUE}:paused", copy)
        assert await claim(broker) == []
        assert QueuePause.decode(copy.encode()).actor == ""

    async def test_a_guarded_claim_takes_nothing_without_a_complete_epoch(self, broker: Broker, observer: Any) -> None:
        """Redis may have lost that the queue is paused."""
        await broker.enqueue([entry("a")])
        for epoch in (None, "?begun"):
            if epoch is not None:
                observer.set(f"{QUEUE}:epoch", epoch)
            assert (await broker.claim(QUEUE, OURS, LEASE, 1, 1, True)).jobs == []
        observer.set(f"{QUEUE}:epoch", "complete")
        assert len((await broker.claim(QUEUE, OURS, LEASE, 1, 1, True)).jobs) == 1


class TestClaimFromSeveralQueues:
    """One round trip, which takes jobs in the order of the queues."""

    async def test_jobs_are_taken_from_the_first_queues_first_and_no_more_than_wanted(
        self, broker: Broker, observer: Any
    ) -> None:
        """Also of a hash-tagged queue, whose keys have another prefix. All get the one token."""
        queues = ["empty", "high", "{tagged}", "low"]
        for queue in queues[1:]:
            await broker.enqueue([new_job(f"{queue}{n}", b"{}", queue) for n in range(3)])
        claims = await broker.claim_from(queues, OURS, LEASE, 5)
        ids = {queue: [job.raw_id.decode() for job in jobs] for queue, jobs in claims.jobs.items()}
        assert ids == {"high": ["high0", "high1", "high2"], "{tagged}": ["{tagged}0", "{tagged}1"]}
        assert [*claims.jobs] == ["high", "{tagged}"]
        assert observer.get("arq:in-progress:high0").partition(":")[0] == OURS
        assert observer.get("{tagged}:in-progress:{tagged}0").partition(":")[0] == OURS
        assert (await broker.claim_from(queues[::-1], THEIRS, LEASE, 100)).jobs.keys() == {"low", "{tagged}"}

    async def test_the_next_due_time_is_the_earliest_of_all_queues(self, broker: Broker) -> None:
        """None if all are empty; now, if a queue has not been looked at."""
        assert (await broker.claim_from(["a", "b"], OURS, LEASE, 5)).next_due is None
        await broker.enqueue([new_job("a", b"{}", "a", delay=60_000), new_job("b", b"{}", "b", delay=30_000)])
        claims = await broker.claim_from(["a", "b", "c"], OURS, LEASE, 5)
        assert claims.jobs == {}
        assert claims.next_due == pytest.approx(30, abs=1)
        large = [new_job(f"large{n}", b" " * 3 * 1024 * 1024, "a") for n in range(2)]
        broker.max_payload = 4 * 1024 * 1024
        await broker.enqueue([*large, new_job("small", b"{}", "b")])
        claims = await broker.claim_from(["a", "b"], OURS, LEASE, 5)
        assert [len(jobs) for jobs in claims.jobs.values()] == [2]
        assert claims.next_due == 0

    async def test_paused_and_guarded_queues_are_left_out(self, broker: Broker, observer: Any) -> None:
        """Each by itself: the jobs of the other queues are taken."""
        queues = ["paused", "guarded", "open"]
        await broker.enqueue([new_job(queue, b"{}", queue) for queue in queues])
        observer.set("paused:paused", "-inf {}")
        claims = await broker.claim_from(queues, OURS, LEASE, 5, 1, {"guarded"})
        assert [*claims.jobs] == ["open"]
        observer.delete("paused:paused")
        observer.set("guarded:epoch", "complete")
        claims = await broker.claim_from(queues, OURS, LEASE, 5, 1, {"guarded"})
        assert [*claims.jobs] == ["paused", "guarded"]

    async def test_a_key_that_is_no_queue_keeps_back_no_job_of_the_others(self, broker: Broker, observer: Any) -> None:
        """Its error comes with the jobs. Without a job it is raised."""
        observer.set("broken", "not a queue")
        await broker.enqueue([new_job(queue, b"{}", queue) for queue in ("first", "last")])
        claims = await broker.claim_from(["first", "broken", "last"], OURS, LEASE, 5)
        assert [*claims.jobs] == ["first", "last"]
        assert "WRONGTYPE" in (claims.refused or "")
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            await broker.claim_from(["first", "broken", "last"], OURS, LEASE, 5)

    @pytest.mark.parametrize("count", [1, 2, 20, 21, 45])
    async def test_a_job_is_found_in_whichever_of_many_queues_it_is(self, broker: Broker, count: int) -> None:
        """Empty queues are skipped twenty at a time."""
        queues = [f"q{number}" for number in range(count)]
        for queue in queues:
            await broker.enqueue([new_job(f"job of {queue}", b"{}", queue)])
            claims = await broker.claim_from(queues, OURS, LEASE, 5)
            assert {name: [job.raw_id for job in jobs] for name, jobs in claims.jobs.items()} == {
                queue: [f"job of {queue}".encode()]
            }
            await broker.finish(queue, [Completion(f"job of {queue}".encode(), OURS, "end", keep=0)])
        await broker.enqueue([new_job(f"job of {queue}", b"{}", queue) for queue in queues])
        assert [*(await broker.claim_from(queues, OURS, LEASE, count)).jobs] == queues

    @pytest.mark.parametrize("queue", ["{a}", "a{b}", "{a}b", "{}", "{a}{b}", "{{a}}", "a b", "%a", "{a b}"])
    async def test_the_script_finds_the_payloads_of_queues_of_any_name(self, broker: Broker, queue: str) -> None:
        """It knows the same prefixes of keys as `Keys`."""
        await broker.enqueue([new_job("a", b"payload", queue)])
        (job,) = (await broker.claim_from([queue, "other"], OURS, LEASE, 5)).jobs[queue]
        assert job.payload == b"payload"

    async def test_suspects_of_all_queues_count_together(self, broker: Broker, observer: Any) -> None:
        """One that kills its workers must not take along another one."""
        for queue in ("a", "b"):
            await broker.enqueue([new_job(queue, b"{}", queue)])
            for _ in range(2):
                assert (await broker.claim(queue, OURS, 1, 1)).jobs
                await eventually(partial(is_free, observer, queue))
        claims = await broker.claim_from(["a", "b"], OURS, LEASE, 5, 1)
        assert [*claims.jobs] == ["a"]


class TestPutBack:
    async def test_a_note_is_kept_until_the_next_claim_and_is_no_crash(self, broker: Broker, observer: Any) -> None:
        """It takes the place of the claim, so no key is left after the job's end."""
        await broker.enqueue([entry()])
        await claim_one(broker)
        note = '["w", "ValueError", "not: yet"]'
        assert await broker.finish(QUEUE, [Completion(b"a", OURS, "again", b"{}", f"1 {note}", 0)]) == [True]
        assert observer.get("arq:retry:a") == "1"
        inspection = await JobInspector(broker.connections).inspect(QUEUE, "a")
        assert inspection.put_back == PutBack("w", "ValueError", "not: yet")
        assert (inspection.tries, inspection.crashes, inspection.lease) == (1, 0, None)
        job = await claim_one(broker, THEIRS)
        assert (job.tries, job.crashes) == (1, 0)
        assert (await JobInspector(broker.connections).inspect(QUEUE, "a")).put_back is None
        await finish(broker, "end", THEIRS, keep=0)
        assert observer.keys() == []


class TestRemoval:
    async def test_jobs_that_wait_are_listed_counted_and_removed_with_all_their_keys(
        self, broker: Broker, observer: Any
    ) -> None:
        """A running job stays, and so does one that was enqueued later."""
        inspector = QueueInspector(broker.connections)
        await broker.enqueue([entry("runs")])
        await claim_one(broker)
        await broker.enqueue([entry("old", encode("f", b"{}", 1_000)), entry("new", encode("f", b"{}", 9_000))])
        observer.set("arq:retry:old", 2)
        observer.hset("arq:started", "old", "0:1:[]")
        assert await inspector.count_waiting(QUEUE, 0, 10) == (3, 2)
        assert await inspector.waiting(QUEUE, 0, 10, 5_000) == (3, [b"old"])
        assert await inspector.remove(QUEUE, [b"old", b"runs", b"nowhere"]) == [b"old"]
        assert not [key for key in observer.keys("*") if "old" in key]
        assert not observer.hexists("arq:started", "old")
        assert set(observer.zrange(QUEUE, 0, -1)) == {"runs", "new"}


class TestRunNow:
    async def test_a_waiting_job_becomes_due_and_others_keep_their_times(self, broker: Broker) -> None:
        """Only the job that was enqueued at the given time."""
        await broker.enqueue([entry("later", encode("f", b"{}", 1_000), delay=60_000), entry("due"), entry("runs")])
        assert await broker.run_now(QUEUE, "later", 2_000) is RunNow.NO_JOB
        assert await broker.run_now(QUEUE, "nowhere") is RunNow.NO_JOB
        assert await broker.run_now(QUEUE, "due") is RunNow.WAS_DUE
        assert await broker.run_now(QUEUE, "later", 1_000) is RunNow.DUE
        assert await broker.run_now(QUEUE, "later") is RunNow.WAS_DUE
        assert len(await claim(broker)) == 3
        assert await broker.run_now(QUEUE, "runs") is RunNow.RUNS

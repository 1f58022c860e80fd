"""Admission: whatever is in the queue, the worker lives, and each job that cannot run fails."""

import json
import os
import pickle
import random
from typing import Any

import pytest
import redis

import db
from tests.proxy import Proxy
from tests.waiting import at_once
from tests.worker.engine.conftest import Seen, StartWorker
from tests.worker.new_jobs import new_job
from worker import Broker, JobFailed, task
from worker.engine import broker_completer
from worker.ledger import Ledger
from worker.message import encode

GOOD = encode("double", b'{"number":21}', 1)


@task
async def double(number: int) -> int:
    return 2 * number


class Bomb:
    """A pickle that runs code where it is loaded."""

    def __reduce__(self) -> Any:
        return (os.abort, ())


def truncated(random_: random.Random) -> bytes:
    return GOOD[: random_.randrange(len(GOOD))]


def garbled(random_: random.Random) -> bytes:
    at = random_.randrange(len(GOOD))
    return GOOD[:at] + random_.randbytes(3) + GOOD[at + 3 :]


def shapeless(random_: random.Random) -> bytes:
    shapes: list[Any] = [
        [],
        {},
        None,
        7,
        "x",
        {"f": "double"},
        {"f": 1, "a": [], "k": {}, "et": 1},
        {"f": "double", "a": {}, "k": [], "et": 1},
        {"f": "double", "a": [], "k": {}, "et": "now"},
        {"f": "double", "a": [], "k": {}, "et": 10**30},
        {"f": "double", "a": [1, 2, 3], "k": {"number": 4}, "et": 1},
        {"f": "double", "a": ["x"], "k": {}, "et": 1},
        {"f": "nobody", "a": [], "k": {}, "et": 1},
    ]
    return json.dumps(random_.choice(shapes)).encode()


def too_deep(_: random.Random) -> bytes:
    return GOOD.replace(b"21", b"[" * 5000 + b"]" * 5000)


def too_long_a_number(_: random.Random) -> bytes:
    return GOOD.replace(b"21", b"9" * 5000)


def pickled(random_: random.Random) -> bytes:
    return pickle.dumps(random_.choice([Bomb(), {"f": "double", "a": (1,), "k": {}, "et": 1}]))


BAD = (truncated, garbled, shapeless, too_deep, too_long_a_number, pickled, lambda random_: random_.randbytes(40))


class TestUnreadableJobs:
    @pytest.mark.parametrize("ledger", [None, Ledger()], ids=["Redis alone", "with a ledger"])
    @pytest.mark.usefixtures("database")
    async def test_a_thousand_malformed_jobs_each_fail_and_the_good_jobs_between_them_run(
        self, start: StartWorker, redis_url: str, ledger: Ledger | None
    ) -> None:
        """The payloads are not jobs, and the ids are not text."""
        random_ = random.Random(3)
        bad = {random_.randbytes(random_.randrange(1, 30)): random_.choice(BAD)(random_) for _ in range(1000)}
        bad.update({b"": b"", b"a:b": b"", b" ": b"", b"\0\r\n": b""})
        bad = {job_id: raw for job_id, raw in bad.items() if b'"number":21' not in raw or b"double" not in raw}
        good = [b"good-%d" % number for number in range(100)]
        with redis.Redis.from_url(redis_url) as client:
            with client.pipeline() as pipe:
                for job_id, raw in [*bad.items(), *((job_id, GOOD) for job_id in good)]:
                    pipe.set(b"arq:job:" + job_id, raw)
                    pipe.zadd("arq:queue", {job_id: random_.randrange(1000)})
                pipe.execute()
            async with start(double, unknown_for=0, ledger=ledger) as worker:
                await worker.idle(timeout=20)
                assert worker.engine.counts["failed"] == len(bad)
                outcomes = {
                    job_id: json.loads(client.get(b"arq:result:" + job_id) or b"{}") for job_id in [*bad, *good]
                }
                assert [job_id for job_id in bad if outcomes[job_id]["s"]] == []
                assert [outcomes[job_id]["r"] for job_id in good] == [42] * 100
            assert {
                key
                for key in client.keys("*")
                if not key.startswith(
                    (
                        b"arq:result:",
                        b"arq:queue:epoch",
                        b"arq:queue:tasks",
                        b"arq:queue:metrics:",
                        b"arq:served-queues",
                    )
                )
            } == set()

    async def test_a_payload_larger_than_any_result_fails_its_own_job_alone(
        self, start: StartWorker, broker: Broker, seen: Seen, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The payload was written to Redis directly, without an enqueue."""
        # What is really allowed takes a busy machine longer to pass on than Redis is waited for.
        monkeypatch.setattr(broker_completer, "_LARGEST_RESULT", 6 * 1024 * 1024)
        huge = GOOD.replace(b"21", b'"%b"' % (b"x" * 7 * 1024 * 1024))
        await broker.redis.set("arq:job:huge", huge)
        await broker.redis.zadd("arq:queue", {"huge": 1})
        async with start(double, lease=5) as worker:
            job = await double.enqueue(1)
            await worker.idle(timeout=30)
            assert await at_once(job.result()) == 2
        result = seen.result("huge")
        assert (result["s"], result["k"], result["r"]["type"]) == (
            False,
            {},
            "pydantic_core._pydantic_core.ValidationError",
        )
        assert seen.left() == set()

    async def test_a_payload_over_eight_times_the_limit_fails_without_being_sent_to_a_worker(
        self, start: StartWorker, redis_url: str, broker: Broker, seen: Seen
    ) -> None:
        """The limit is `WORKER_MAX_PAYLOAD`, and the error names it."""
        await broker.redis.set("arq:job:huge", GOOD.replace(b"21", b"2" * 9 * 1024 * 1024))
        await broker.redis.zadd("arq:queue", {"huge": 1})
        async with Proxy(redis_url) as proxy, start(double, url=proxy.url) as worker:
            job = await double.enqueue(1)
            await worker.idle(timeout=30)
            assert await at_once(job.result()) == 2
        error = seen.result("huge")["r"]
        assert error["type"] == "worker.errors.PayloadTooLargeError"
        assert error["message"].startswith(
            "its payload has 9437237 bytes, and a worker reads 8 times WORKER_MAX_PAYLOAD"
        )
        assert proxy.carried < 1024 * 1024
        assert seen.left() == set()

    @pytest.mark.usefixtures("database")
    async def test_an_oversized_payload_fails_a_transactional_job_and_its_row_keeps_the_arguments(
        self, start: StartWorker, broker: Broker
    ) -> None:
        """The row of a job that was enqueued in a transaction is failed, and keeps the arguments that it has."""
        async with db.scope():
            job = await double.enqueue(1)
        await broker.redis.set(f"arq:job:{job.job_id}", b"x" * 9 * 1024 * 1024)
        async with start(double, ledger=Ledger()) as worker:
            with pytest.raises(JobFailed, match="WORKER_MAX_PAYLOAD"):
                await job.result(timeout=30)
            await worker.idle()
        row = await Ledger().latest(job.job_id)
        assert row is not None
        assert (row["state"], b'"number":1' in row["payload"]) == ("failed", True)

    async def test_a_pickle_is_not_loaded(self, start: StartWorker, broker: Broker, seen: Seen) -> None:
        """The error names the setting that allows it."""
        await broker.enqueue([new_job("bomb", pickle.dumps(Bomb()), "arq:queue")])
        async with start(double) as worker:
            await worker.idle()
        assert "WORKER_ACCEPT_PICKLE" in seen.result("bomb")["r"]["message"]

    async def test_a_job_without_a_payload_fails_as_expired(
        self, start: StartWorker, observer: Any, seen: Seen
    ) -> None:
        """An id without a payload, or with something else in its place, ends as expired."""
        observer.zadd("arq:queue", {"none": 1, "list": 1})
        observer.rpush("arq:job:list", "x")
        async with start(double) as worker:
            await worker.idle()
        assert {seen.result(job_id)["r"]["type"] for job_id in ("none", "list")} == {"worker.errors.JobExpiredError"}
        assert seen.left() == set()


class TestCrashLimit:
    async def test_a_job_at_its_crash_limit_fails_without_running(
        self, start: StartWorker, observer: Any, seen: Seen
    ) -> None:
        """Its worker died as often as `WORKER_MAX_CRASHES` allows."""
        job = await double.enqueue(3)
        observer.hset("arq:started", job.job_id, "3:" + "x" * 28)
        async with start(double, max_crashes=3):
            with pytest.raises(JobFailed, match="its worker died 3 times while it ran; WORKER_MAX_CRASHES"):
                await job.result(timeout=30)
        assert seen.left() == set()

    async def test_a_job_below_its_crash_limit_runs(self, start: StartWorker, observer: Any) -> None:
        """Its worker died one time less than the limit."""
        job = await double.enqueue(3)
        observer.hset("arq:started", job.job_id, "2:" + "x" * 28)
        async with start(double, max_crashes=3):
            assert await job.result(timeout=30) == 6

"""Enqueueing jobs in Redis and reading their status: which keys are in Redis afterwards."""

import asyncio
from typing import Any

import pytest
import redis

import worker
from tests.conftest import StartRedis
from tests.worker.conftest import RoundTrips
from tests.worker.new_jobs import new_job
from worker.broker.broker import Broker
from worker.broker.unserved import serve
from worker.broker.worker_records import WorkerRecords
from worker.new_job import NewJob


def entries(*ids: str, queue: str = "q", **more: Any) -> list[NewJob]:
    return [new_job(job_id, b"{}", queue, **more) for job_id in ids]


def check_at_each_enqueue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process check for workers at each enqueue, as if it had never checked."""
    monkeypatch.setattr("worker.broker.unserved._next_check", {})
    monkeypatch.setattr("worker.broker.unserved._without_worker", set())
    monkeypatch.setattr("worker.broker.unserved._CHECK_INTERVAL", 0.0)
    monkeypatch.setattr("worker.broker.unserved._START_TIME", 0.0)


class TestEnqueue:
    async def test_enqueue_writes_the_payload_and_the_id_by_due_time(
        self, broker: Broker, observer: redis.Redis
    ) -> None:
        """The keys are arq's: the payload under its id, which expires, and the id in the queue by its due time."""
        assert await broker.enqueue([new_job("a", b"payload", "q", delay=5000, expires=1000)]) == [True]
        clock: Any = observer.time()
        assert observer.get("arq:job:a") == "payload"
        assert observer.pttl("arq:job:a") == pytest.approx(6000, abs=1000)
        assert observer.zscore("q", "a") == pytest.approx(clock[0] * 1000 + 5000, abs=2000)
        assert sorted(map(str, observer.scan_iter())) == ["arq:job:a", "q"]

    async def test_enqueue_returns_for_each_job_whether_its_id_was_free(
        self, broker: Broker, observer: redis.Redis
    ) -> None:
        """In the order of the entries, over several queues and thousands, and with an id that is there twice."""
        await broker.enqueue(entries("taken"))
        many = [new_job(str(number % 2500), b"{}", f"q{number % 2}") for number in range(2600)]
        added = await broker.enqueue([*entries("new"), *entries("taken"), *many])
        assert added[:2] == [True, False]
        assert added[2:2502] == [True] * 2500
        assert added[2502:] == [False] * 100
        assert (observer.zcard("q0"), observer.zcard("q1")) == (1250, 1250)

    async def test_enqueue_forgets_an_abort_of_an_earlier_job(self, broker: Broker, observer: redis.Redis) -> None:
        """An id that was aborted when there was no such job is enqueued as any other."""
        observer.zadd("arq:abort", {"a": 1})
        await broker.enqueue(entries("a"))
        assert observer.zscore("arq:abort", "a") is None

    async def test_a_queue_that_no_worker_serves_is_logged_once_and_at_no_round_trip(
        self, broker: Broker, observer: redis.Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A warning is logged once for each queue, by enqueue or publish; it costs no round trip."""
        check_at_each_enqueue(monkeypatch)
        await WorkerRecords(broker.connections).record_health(["served"], "w", "", 60_000)
        for put in (broker.enqueue, broker.publish):
            await put(entries("first", queue="served"))  # so that Redis knows the scripts
        trips = RoundTrips(observer)
        for number in range(2):
            for name in ("served", "left", "ours"):
                if name == "ours":
                    serve(["ours"])
                assert await broker.enqueue(entries(f"{name} {number}", queue=name)) == [True]
            assert await broker.publish(entries(f"published {number}", queue="also left")) == [True]
        assert trips() == 8
        assert caplog.messages == [
            f"no worker serves the queue {name}: its jobs wait until one does (WORKER_QUEUES)"
            for name in ("left", "also left")
        ]

    async def test_a_queue_whose_workers_have_gone_is_logged_after_a_second_look(
        self, broker: Broker, observer: redis.Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The warning waits for a second check, as a new worker may be about to start."""
        check_at_each_enqueue(monkeypatch)
        await WorkerRecords(broker.connections).record_health(["q"], "w", "", 60_000)
        await broker.enqueue(entries("a"))
        await WorkerRecords(broker.connections).forget_health("q", "w")
        await broker.enqueue(entries("b"))
        await WorkerRecords(broker.connections).record_health(["q"], "next", "", 60_000)
        await broker.enqueue(entries("c"))
        await WorkerRecords(broker.connections).forget_health("q", "next")
        await broker.enqueue(entries("d"))
        assert caplog.messages == []
        await broker.enqueue(entries("e"))
        assert len(caplog.messages) == 1
        assert observer.zcard("q") == 5

    @pytest.mark.parametrize("key", ["q:tasks", "q:health-check"])
    async def test_a_queue_of_an_unhealthy_or_a_stock_worker_is_not_logged(
        self,
        broker: Broker,
        observer: redis.Redis,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        key: str,
    ) -> None:
        """A worker that is unhealthy (its database may be away) serves its queue; so does a stock arq worker."""
        check_at_each_enqueue(monkeypatch)
        if key == "q:tasks":
            await WorkerRecords(broker.connections).announce("q", ["send"], 60_000)
        else:
            observer.set(key, "Nov-30 22:00:00 j_complete=0")
        for put in (broker.enqueue, broker.publish):
            for number in range(3):
                await put(entries(f"{put.__name__} {number}"))
        assert caplog.messages == []

    async def test_enqueue_does_not_look_for_workers_each_time(
        self, broker: Broker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second check comes only after a worker that was starting has had the time to start."""
        check_at_each_enqueue(monkeypatch)
        monkeypatch.setattr("worker.broker.unserved._START_TIME", 60.0)
        for number in range(3):
            await broker.enqueue(entries(str(number)))
        assert caplog.messages == []

    async def test_enqueue_works_after_redis_has_forgotten_the_script(
        self, broker: Broker, observer: redis.Redis
    ) -> None:
        """After SCRIPT FLUSH, or on a new server, the text is sent again."""
        await broker.enqueue(entries("a"))
        observer.script_flush()
        assert await broker.enqueue(entries("b")) == [True]

    async def test_enqueue_works_after_a_restart_of_redis(self, own_redis: StartRedis) -> None:
        """The next call opens a new connection by itself."""
        server = own_redis()
        broker = Broker(server.url)
        await broker.enqueue(entries("a"))
        await asyncio.to_thread(server.restart)
        assert await broker.enqueue(entries("b")) == [True]
        await broker.close()


class TestDefault:
    async def test_the_default_queue_is_the_one_that_was_set_or_that_of_the_environment(
        self, redis_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """`set_default_broker(None)` goes back to the Redis that REDIS_URL names."""
        ours = Broker(redis_url, default=True)
        assert worker.default_broker() is ours
        worker.set_default_broker(None)
        monkeypatch.setenv("REDIS_URL", redis_url)
        monkeypatch.setenv("WORKER_MAX_PAYLOAD", "2KiB")
        theirs = worker.default_broker()
        assert theirs is worker.default_broker() is not ours
        assert (theirs.name, theirs.max_payload) == ("arq:queue", 2048)


class TestStatus:
    async def test_the_status_of_an_unknown_id_is_empty(self, broker: Broker) -> None:
        """An id that was never used has neither payload, result, lease nor due time."""
        trace = await broker.status("q", "nobody")
        assert (trace.payload, trace.result, trace.in_progress, trace.due) == (None, None, False, None)

    async def test_the_status_of_a_job_is_read_in_one_round_trip(self, broker: Broker, observer: redis.Redis) -> None:
        """All keys of the job are read at one moment, together with Redis' clock."""
        await broker.enqueue(entries("a", delay=60_000))
        await broker.status("q", "nobody")  # so that Redis knows the script
        trips = RoundTrips(observer)
        trace = await broker.status("q", "a")
        assert trips() == 1
        assert trace.payload == b"{}"
        assert trace.due is not None
        assert trace.due - trace.now == pytest.approx(60_000, abs=1000)


def test_the_deprecated_names_still_work(broker: Broker) -> None:
    """Code that was written for `Queue` runs on."""
    assert (worker.Queue, worker.default_queue, worker.set_default_queue) == (
        worker.Broker,
        worker.default_broker,
        worker.set_default_broker,
    )
    named = Broker(broker.url, name="of the old name")
    assert worker.Job("a", queue=named).queue_name == worker.Job("a", broker=named).queue_name == "of the old name"


def test_one_call_serves_all_queues_of_a_redis_and_each_queue_of_a_cluster_by_itself() -> None:
    """A cluster may keep them on several nodes."""
    queues = ["{a}", "{b}"]
    assert Broker("redis://nobody.invalid").connections.together(queues) == [queues]
    assert Broker("redis+cluster://nobody.invalid").connections.together(queues) == [("{a}",), ("{b}",)]

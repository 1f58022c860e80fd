"""``Queue.enqueue`` and ``trace``: what is in Redis afterwards."""

import asyncio
from typing import Any

import pytest
import redis

import worker
from tests.conftest import StartRedis
from tests.worker.conftest import RoundTrips
from tests.worker.new_jobs import new_job
from worker.new_job import NewJob
from worker.queue import Queue
from worker.unserved import serve
from worker.worker_records import WorkerRecords


def entries(*ids: str, queue: str = "q", **more: Any) -> list[NewJob]:
    return [new_job(job_id, b"{}", queue, **more) for job_id in ids]


def look_at_each_enqueue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process begin anew to look for workers, and do so each time."""
    monkeypatch.setattr("worker.unserved._next_look", {})
    monkeypatch.setattr("worker.unserved._doubtful", set())
    monkeypatch.setattr("worker.unserved._LOOK_AGAIN", 0.0)
    monkeypatch.setattr("worker.unserved._STARTING", 0.0)


class TestEnqueue:
    async def test_leaves_a_job_and_its_place(self, queue: Queue, observer: redis.Redis) -> None:
        """arq's keys: the payload under its id, which expires, and the id in the queue by when it is due."""
        assert await queue.enqueue([new_job("a", b"payload", "q", delay=5000, expires=1000)]) == [True]
        clock: Any = observer.time()
        assert observer.get("arq:job:a") == "payload"
        assert observer.pttl("arq:job:a") == pytest.approx(6000, abs=1000)
        assert observer.zscore("q", "a") == pytest.approx(clock[0] * 1000 + 5000, abs=2000)
        assert sorted(map(str, observer.scan_iter())) == ["arq:job:a", "q"]

    async def test_tells_of_each_whether_its_id_was_free(self, queue: Queue, observer: redis.Redis) -> None:
        """In the order of the entries, over several queues and thousands, and with an id that is there twice."""
        await queue.enqueue(entries("taken"))
        many = [new_job(str(number % 2500), b"{}", f"q{number % 2}") for number in range(2600)]
        added = await queue.enqueue([*entries("new"), *entries("taken"), *many])
        assert added[:2] == [True, False]
        assert added[2:2502] == [True] * 2500
        assert added[2502:] == [False] * 100
        assert (observer.zcard("q0"), observer.zcard("q1")) == (1250, 1250)

    async def test_forgets_an_abort_that_was_meant_for_an_earlier_job(
        self, queue: Queue, observer: redis.Redis
    ) -> None:
        """B8: an id that was aborted when there was no such job is enqueued as any other."""
        observer.zadd("arq:abort", {"a": 1})
        await queue.enqueue(entries("a"))
        assert observer.zscore("arq:abort", "a") is None

    async def test_to_a_queue_that_no_worker_serves(
        self, queue: Queue, observer: redis.Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Is said, once for each queue, however jobs come there; and it costs no round trip."""
        look_at_each_enqueue(monkeypatch)
        await WorkerRecords(queue.connections).record_health("served", "w", b"{}", 60_000)
        for put in (queue.enqueue, queue.publish):
            await put(entries("first", queue="served"))  # so that Redis knows the scripts
        trips = RoundTrips(observer)
        for number in range(2):
            for name in ("served", "left", "ours"):
                if name == "ours":
                    serve(["ours"])
                assert await queue.enqueue(entries(f"{name} {number}", queue=name)) == [True]
            assert await queue.publish(entries(f"published {number}", queue="also left")) == [True]
        assert trips() == 8
        assert caplog.messages == [
            f"no worker serves the queue {name}: its jobs wait until one does (WORKER_QUEUES)"
            for name in ("left", "also left")
        ]

    async def test_to_a_queue_whose_workers_have_gone(
        self, queue: Queue, observer: redis.Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Is said likewise, unless another one has come by the second look: one may be about to start."""
        look_at_each_enqueue(monkeypatch)
        await WorkerRecords(queue.connections).record_health("q", "w", b"{}", 60_000)
        await queue.enqueue(entries("a"))
        await WorkerRecords(queue.connections).forget_health("q", "w")
        await queue.enqueue(entries("b"))
        await WorkerRecords(queue.connections).record_health("q", "next", b"{}", 60_000)
        await queue.enqueue(entries("c"))
        await WorkerRecords(queue.connections).forget_health("q", "next")
        await queue.enqueue(entries("d"))
        assert caplog.messages == []
        await queue.enqueue(entries("e"))
        assert len(caplog.messages) == 1
        assert observer.zcard("q") == 5

    @pytest.mark.parametrize("key", ["q:tasks", "q:health-check"])
    async def test_to_a_queue_whose_worker_says_less(
        self,
        queue: Queue,
        observer: redis.Redis,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
        key: str,
    ) -> None:
        """A worker that is not well, while its database is away say, serves the queue; so does a stock one."""
        look_at_each_enqueue(monkeypatch)
        if key == "q:tasks":
            await WorkerRecords(queue.connections).announce("q", ["send"], 60_000)
        else:
            observer.set(key, "Nov-30 22:00:00 j_complete=0")
        for put in (queue.enqueue, queue.publish):
            for number in range(3):
                await put(entries(f"{put.__name__} {number}"))
        assert caplog.messages == []

    async def test_looks_for_workers_now_and_then(
        self, queue: Queue, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Not at each enqueue, and a second time only when a worker that was starting has had the time to."""
        look_at_each_enqueue(monkeypatch)
        monkeypatch.setattr("worker.unserved._STARTING", 60.0)
        for number in range(3):
            await queue.enqueue(entries(str(number)))
        assert caplog.messages == []

    async def test_survives_a_redis_that_has_forgotten_the_script(self, queue: Queue, observer: redis.Redis) -> None:
        """After SCRIPT FLUSH, or on a new server, the text is sent again."""
        await queue.enqueue(entries("a"))
        observer.script_flush()
        assert await queue.enqueue(entries("b")) == [True]

    async def test_after_a_restart_of_redis(self, own_redis: StartRedis) -> None:
        """The next call opens a new connection; nobody has to do anything."""
        server = own_redis()
        queue = Queue(server.url)
        await queue.enqueue(entries("a"))
        await asyncio.to_thread(server.restart)
        assert await queue.enqueue(entries("b")) == [True]
        await queue.close()


class TestDefault:
    async def test_there_is_one_default(self, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """`set_default_queue(None)` goes back to what REDIS_URL names."""
        ours = Queue(redis_url, default=True)
        assert worker.default_queue() is ours
        worker.set_default_queue(None)
        monkeypatch.setenv("REDIS_URL", redis_url)
        monkeypatch.setenv("WORKER_MAX_PAYLOAD", "2KiB")
        theirs = worker.default_queue()
        assert theirs is worker.default_queue() is not ours
        assert (theirs.name, theirs.max_payload) == ("arq:queue", 2048)


class TestTrace:
    async def test_of_nothing(self, queue: Queue) -> None:
        """An id that nobody used."""
        trace = await queue.trace("q", "nobody")
        assert (trace.payload, trace.result, trace.in_progress, trace.due) == (None, None, False, None)

    async def test_is_one_round_trip_at_one_moment(self, queue: Queue, observer: redis.Redis) -> None:
        """All that is known is asked for at once, together with Redis' clock."""
        await queue.enqueue(entries("a", delay=60_000))
        await queue.trace("q", "nobody")  # so that Redis knows the script
        trips = RoundTrips(observer)
        trace = await queue.trace("q", "a")
        assert trips() == 1
        assert trace.payload == b"{}"
        assert trace.due is not None
        assert trace.due - trace.now == pytest.approx(60_000, abs=1000)

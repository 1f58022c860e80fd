"""`enqueue_sync`: code without an event loop enqueues, in the transaction of its scope."""

import asyncio
import contextvars
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
from pydantic import ValidationError
from sqlalchemy import text

import db
from tests.conftest import StartRedis
from tests.worker.conftest import Count, Execute
from worker import Broker, Job, WorkerError, task
from worker.engine.outcome import OutcomeKind
from worker.errors import EnqueueError
from worker.ledger import Ledger


@task
async def ship(order_id: int) -> int:
    return order_id


@task
def order(session: db.Session, order_id: int, *, fails: bool = False, job_id: str | None = None) -> str:
    session.execute(text("INSERT INTO note (words) VALUES ('ordered')"))
    job = ship.using(job_id=job_id).enqueue_sync(order_id)
    if fails:
        raise LookupError
    return job.job_id


@pytest.fixture
def scripts_broker(redis_url: str) -> Iterator[Broker]:
    """The default queue of a test that has no loop."""
    broker = Broker(redis_url, default=True)
    yield broker
    asyncio.run(broker.close())


def queued(observer: redis.Redis) -> list[str]:
    """The ids in the default queue."""
    ids: Any = observer.zrange("arq:queue", 0, -1)
    return list(ids)


class TestOutsideAScope:
    @pytest.mark.usefixtures("scripts_broker")
    def test_a_script_without_an_event_loop_enqueues_and_gets_a_handle(self, observer: redis.Redis) -> None:
        """A script enqueues, with job options too, and gets a handle whose status and result it can ask for."""
        job = ship.enqueue_sync(order_id=7)
        later = ship.using(delay=60, job_id="later").enqueue_sync(8)
        again = ship.using(job_id="later").enqueue_sync(8)
        assert (job.is_new, later.is_new, again.is_new) == (True, True, False)
        assert queued(observer) == [job.job_id, "later"]
        assert asyncio.run(later.status()) == "deferred"

    @pytest.mark.usefixtures("scripts_broker")
    def test_many_jobs_are_one_round_trip_for_each_thousand(self, observer: redis.Redis) -> None:
        """Also from a script. One call with wrong arguments queues nothing."""
        ship.enqueue_sync(0)  # opens the connection, and loads the script
        before: Any = observer.info("commandstats")
        jobs = ship.enqueue_many_sync([{"order_id": number} for number in range(2500)])
        after: Any = observer.info("commandstats")
        calls = [stats.get("cmdstat_evalsha", {"calls": 0})["calls"] for stats in (before, after)]
        assert calls[1] - calls[0] == 3
        assert {job.job_id for job in jobs} < set(queued(observer))
        with pytest.raises(ValidationError):
            ship.enqueue_many_sync([{"order_id": 1}, {"order_id": "many"}])
        assert len(queued(observer)) == 2501

    @pytest.mark.usefixtures("scripts_broker")
    def test_jobs_of_many_threads_all_arrive_over_few_connections(self, observer: Any) -> None:
        """All jobs of many threads arrive, over the connections of one loop."""
        with ThreadPoolExecutor(20) as threads:
            jobs = list(threads.map(ship.enqueue_sync, range(400)))
        assert set(queued(observer)) == {job.job_id for job in jobs}
        assert len(observer.client_list()) < 60

    @pytest.mark.usefixtures("scripts_broker")
    def test_wrong_arguments_raise_and_queue_nothing(self, observer: redis.Redis) -> None:
        """Wrong arguments raise the same error as everywhere, and nothing is queued."""
        with pytest.raises(ValidationError):
            ship.enqueue_sync(order_id="x")  # type: ignore[arg-type]  # the case under test
        assert queued(observer) == []

    def test_the_error_of_an_unreachable_redis_is_raised_until_redis_is_back(self, own_redis: StartRedis) -> None:
        """The caller gets the error of Redis; once Redis is back, jobs are enqueued again."""
        server = own_redis()
        broker = Broker(server.url, default=True)
        assert ship.enqueue_sync(1).is_new
        server.kill()
        with pytest.raises(redis.ConnectionError):
            ship.enqueue_sync(2)
        server.restart()
        assert ship.enqueue_sync(3).is_new
        asyncio.run(broker.close())

    @pytest.mark.usefixtures("broker")
    async def test_enqueue_sync_on_an_event_loop_is_refused(self, observer: redis.Redis) -> None:
        """On an event loop it would block the loop: the error says what to write instead."""
        with pytest.raises(EnqueueError, match=r"write 'await ship\.enqueue\(\.\.\.\)'"):
            ship.enqueue_sync(7)
        with pytest.raises(EnqueueError):
            await asyncio.to_thread(asyncio.run, on_a_loop())
        assert queued(observer) == []

    def test_a_forked_child_enqueues_with_a_loop_of_its_own(self, redis_url: str, observer: redis.Redis) -> None:
        """A child that was forked after the first use has a loop of its own."""
        script = (
            "import os, sys, threading; from worker import Broker, task\n"
            "@task\nasync def ship(order_id: int) -> int: ...\n"
            f"Broker({redis_url!r}, default=True); ship.using(job_id='parent').enqueue_sync(1)\n"
            "child = os.fork()\n"
            "ship.using(job_id='child' if child == 0 else 'again').enqueue_sync(2)\n"
            "if child: sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        )
        subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, timeout=60, env=dict(os.environ))
        assert set(queued(observer)) == {"parent", "child", "again"}


async def on_a_loop() -> None:
    ship.enqueue_sync(7)


@pytest.mark.usefixtures("broker", "database")
class TestInsideAScope:
    @pytest.mark.parametrize("job_id", [None, "named"])
    async def test_a_job_that_a_plain_task_enqueues_exists_if_and_only_if_its_job_commits(
        self, execute: Execute, observer: redis.Redis, rows: Count, job_id: str
    ) -> None:
        """A job that a plain function enqueues beside its `Session` exists if and only if its own job commits."""
        failed = await execute(order, 7, fails=True, job_id=job_id)
        assert failed.kind is OutcomeKind.FAILED
        assert isinstance(failed.error, LookupError)
        assert (queued(observer), await rows()) == ([], 0)
        done = await execute(order, 7, job_id=job_id)
        assert done.kind is OutcomeKind.COMPLETED
        (job,) = queued(observer)
        assert done.result == f'"{job}"'.encode()
        assert await Ledger().pending(job) is not None
        assert await rows() == 1

    @pytest.mark.parametrize(
        "enqueue",
        [
            ship.enqueue_sync,
            ship.using(job_id="named").enqueue_sync,
            lambda order_id: asyncio.run(ship.enqueue(order_id)),
            lambda order_id: asyncio.run(ship.using(job_id="named").enqueue(order_id)),
        ],
        ids=["sync", "sync, with an id", "asyncio.run", "asyncio.run, with an id"],
    )
    async def test_a_thread_that_was_started_in_a_scope_enqueues_in_its_transaction(
        self, observer: redis.Redis, enqueue: Callable[[int], Job[int]]
    ) -> None:
        """A thread that was started in a scope enqueues in its transaction, also by a loop of its own."""
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                await (await db.session()).execute(text("SELECT 1"))
                await asyncio.to_thread(enqueue, 7)
                raise ZeroDivisionError
        assert queued(observer) == []
        async with db.scope():
            job = await asyncio.to_thread(enqueue, 7)
            assert queued(observer) == []
        assert queued(observer) == [job.job_id]
        assert await Ledger().pending(job.job_id) is not None

    async def test_a_job_that_is_not_transactional_does_not_wait_for_the_commit(self, observer: redis.Redis) -> None:
        """`using(transactional=False)` does not wait for the COMMIT."""
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                await asyncio.to_thread(ship.using(transactional=False).enqueue_sync, 7)
                raise ZeroDivisionError
        assert len(queued(observer)) == 1

    async def test_enqueueing_in_a_scope_that_ends_meanwhile_is_an_error(
        self, observer: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The thread gets an error; no job is enqueued outside of the scope."""
        asked = threading.Event()
        ask = asyncio.run_coroutine_threadsafe

        def ask_and_tell(coroutine: Any, loop: asyncio.AbstractEventLoop) -> Any:
            future = ask(coroutine, loop)
            asked.set()
            return future

        monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", ask_and_tell)
        with ThreadPoolExecutor(1) as thread:
            async with db.scope():
                enqueued = thread.submit(contextvars.copy_context().run, ship.enqueue_sync, 7)
                assert asked.wait(20)  # this loop is blocked until the scope has ended
            with pytest.raises(db.ScopeEndedError):
                await asyncio.wrap_future(enqueued)
        assert queued(observer) == []

    def test_enqueueing_in_a_scope_whose_loop_is_closed_is_an_error(self, observer: redis.Redis) -> None:
        """A thread that outlives the loop of its scope gets an error, and queues nothing."""

        async def leave_open() -> contextvars.Context:
            await db.scope().__aenter__()
            return contextvars.copy_context()

        context = asyncio.run(leave_open())
        with ThreadPoolExecutor(1) as thread, pytest.raises(WorkerError, match=r"the event loop .* is closed"):
            thread.submit(context.run, ship.enqueue_sync, 7).result(20)
        assert queued(observer) == []

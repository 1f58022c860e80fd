"""`current_job()` and on-commit callbacks in threads, child tasks and loops of their own: always those of the job."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

import db
from tests.worker.engine.conftest import StartWorker
from worker import Broker, JobContext, WorkerError, current_job, task
from worker.broker import pubsub
from worker.context import enter_job, running_job
from worker.ledger import Ledger

pytestmark = pytest.mark.usefixtures("broker", "database")

SEEN: list[tuple[str, str]] = []
"""What ran where: the place, and the id of the job that `current_job` gave there."""
ADD = text("INSERT INTO note (words) VALUES (:words)")


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    SEEN.clear()


def see(where: str) -> None:
    SEEN.append((where, current_job().job_id))


async def see_later(where: str) -> None:
    await asyncio.sleep(0)
    see(where)


def callback(where: str) -> Callable[[], None]:
    return lambda: see(where)


def async_callback(where: str) -> Callable[[], Any]:
    return lambda: see_later(where)


@task
async def everywhere(session: db.AsyncSession) -> None:
    see("task")
    await asyncio.to_thread(see, "to_thread")
    await asyncio.create_task(see_later("child task"))
    async with asyncio.TaskGroup() as group:
        group.create_task(see_later("task group"))
        group.create_task(asyncio.to_thread(lambda: asyncio.run(see_later("loop in a thread"))))
    context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        await asyncio.wrap_future(pool.submit(context.run, see, "pool with the context"))
    await session.execute(ADD, {"words": current_job().job_id})
    db.on_commit(callback("on_commit"))
    db.on_commit(async_callback("async on_commit"))
    await asyncio.to_thread(db.on_commit, callback("on_commit from a thread"))
    await asyncio.create_task(register("on_commit from a child task"))


async def register(where: str) -> None:
    db.on_commit(callback(where))


ASYNC_PLACES = [
    "task",
    "to_thread",
    "child task",
    "task group",
    "loop in a thread",
    "pool with the context",
    "on_commit",
    "async on_commit",
    "on_commit from a thread",
    "on_commit from a child task",
]


@task
def in_a_thread(session: db.Session) -> None:
    see("plain task")
    asyncio.run(see_later("loop"))
    session.execute(ADD, {"words": current_job().job_id})
    db.on_commit(callback("early on_commit"))
    session.commit()
    session.execute(ADD, {"words": f"{current_job().job_id} again"})
    db.on_commit(callback("on_commit"))
    db.on_commit(async_callback("async on_commit"))


SYNC_PLACES = ["plain task", "loop", "early on_commit", "on_commit", "async on_commit"]


class TestCurrentJob:
    async def test_each_of_many_jobs_sees_itself_everywhere(self, start: StartWorker) -> None:
        """In each place once, although ten run at once."""
        async with start(everywhere, in_a_thread, ledger=Ledger()) as one:
            jobs = {job.job_id: ASYNC_PLACES for job in await everywhere.enqueue_many([{}] * 10)}
            jobs |= {job.job_id: SYNC_PLACES for job in await in_a_thread.enqueue_many([{}] * 10)}
            await one.idle()
        assert sorted(SEEN) == sorted((place, job_id) for job_id, places in jobs.items() for place in places)

    async def test_an_attempt_is_not_that_of_the_one_before(self, start: StartWorker) -> None:
        """A rerun and a retry are contexts of their own."""
        seen: list[JobContext] = []

        @task(max_tries=2, retry_on=(LookupError,))
        async def fail() -> None:
            seen.append(current_job())
            await asyncio.to_thread(lambda: seen.append(current_job()))
            raise LookupError

        async with start(fail) as one:
            await fail.enqueue()
            await one.idle()
        assert [job.attempt for job in seen] == [1, 1, 2, 2]

    async def test_a_thread_of_its_own_has_no_job_unless_it_is_given_the_context(self, start: StartWorker) -> None:
        """As with all context variables of Python."""
        errors: list[Exception] = []

        def look() -> None:
            try:
                current_job()
            except WorkerError as error:
                errors.append(error)

        @task
        async def start_thread() -> None:
            thread = threading.Thread(target=look)
            thread.start()
            await asyncio.to_thread(thread.join)

        async with start(start_thread) as one:
            await start_thread.enqueue()
            await one.idle()
        assert len(errors) in (0, 1)  # Python 3.14 may hand the context on

    async def test_a_child_task_that_outlives_its_job_still_names_it(self, start: StartWorker) -> None:
        """And no other job."""
        go_on = asyncio.Event()
        left: list[asyncio.Task[None]] = []

        async def late() -> None:
            await go_on.wait()
            see("late")

        @task
        async def leaves() -> None:
            left.append(asyncio.create_task(late()))

        async with start(leaves) as one:
            jobs = await leaves.enqueue_many([{}] * 2)
            await one.idle()
            go_on.set()
            await asyncio.gather(*left)
        assert sorted(SEEN) == sorted(("late", job.job_id) for job in jobs)

    async def test_what_a_job_starts_for_the_whole_process_is_not_part_of_it(
        self, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The task that reads notices outlives the job that was the first to wait for a result."""
        jobs: list[JobContext | None] = []

        async def read(_self: pubsub.Subscriber) -> None:
            jobs.append(running_job())

        monkeypatch.setattr(pubsub.Subscriber, "_read", read)

        async def wait_for_result() -> None:
            enter_job(JobContext("j1", "send", broker.name, 1, 0))
            async with broker.ended(broker.name, "j2", asyncio.Event()):
                await asyncio.sleep(0)

        await asyncio.create_task(wait_for_result())
        assert jobs == [None]

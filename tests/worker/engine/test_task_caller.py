"""Calling a task: its arguments, the thread it runs in, and the hooks around it."""

import asyncio
import contextvars
import functools
import threading
import time
from datetime import UTC, datetime
from typing import Annotated, Any

import pytest
import redis
from pydantic_core import from_json
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import db
import worker
from db.database import Database
from tests.servers import Observer
from tests.worker.conftest import Count, Execute, ExecutorHarness, MakeHarness
from worker import JobContext, Resource, current_job, injected, task
from worker.engine.outcome import OutcomeKind
from worker.errors import WorkerError
from worker.message import Message

INSERT = text("INSERT INTO note (words) VALUES (:words)")


class TestInjection:
    async def test_an_injected_session_is_the_session_of_the_jobs_scope(self, execute: Execute, rows: Count) -> None:
        """The injected session is the one that `db.session()` gives below, whatever class the annotation names."""

        @task
        async def add(session: AsyncSession, again: db.AsyncSession = injected) -> bool:
            await session.execute(INSERT, {"words": "a"})
            return session is again is await db.session()

        assert (await execute(add)).result == b"true"
        assert await rows() == 1

    async def test_a_session_of_another_database_is_injected_by_annotation_and_committed_too(
        self, execute: Execute, postgres: Observer, database_url: str
    ) -> None:
        """The annotation is `Annotated[AsyncSession, database]`."""
        other = Database(database_url, name="other")

        async def fn(session: AsyncSession, there: Any) -> list[int]:
            asking = text("SELECT pg_backend_pid()")
            await there.execute(INSERT, {"words": "there"})
            return [(await each.execute(asking)).scalar_one() for each in (session, there)]

        fn.__annotations__["there"] = Annotated[AsyncSession, other]
        here, there = from_json((await execute(task(fn))).result)
        assert here != there
        assert await postgres.fetchval("SELECT words FROM note") == "there"
        await other.dispose()

    async def test_the_injected_job_context_is_current_job_also_in_child_tasks(self, harness: ExecutorHarness) -> None:
        """A `JobContext` by annotation is the one that `current_job()` gives below, also in child tasks."""
        seen: list[JobContext] = []

        @task
        async def look(job: JobContext) -> None:
            seen.extend([job, current_job(), await asyncio.create_task(ask())])

        async def ask() -> JobContext:
            return current_job()

        execution = harness.deliver(look, tries=2)
        await harness.start(look, execution)
        job = seen[0]
        assert seen == [job] * 3
        assert (job.job_id, job.task, job.queue, job.attempt) == ("job-1", look.name, "arq:queue", 3)
        assert abs(job.enqueued_at - datetime.now(UTC)).total_seconds() < 60
        assert job.score == execution.due

    async def test_current_job_outside_of_a_job_is_an_error(self, execute: Execute) -> None:
        """Also after a job has ended."""

        @task
        async def nothing() -> None: ...

        await execute(nothing)
        with pytest.raises(WorkerError, match="no job runs here"):
            current_job()

    async def test_a_resource_of_the_lifespan_is_injected_by_its_name(self, execute: Execute) -> None:
        """The annotation is `Annotated[..., Resource(name)]`; the registry's lifespan yields the resource."""

        @task
        async def use(client: Annotated[str, Resource("http")], number: int) -> str:
            return f"{client} {number} {current_job().resources['http']}"

        assert (await execute(use, 7)).result == b'"a client 7 a client"'

    async def test_an_arq_function_finds_arqs_values_its_resources_and_its_session_in_ctx(
        self, execute: Execute, rows: Count
    ) -> None:
        """All that arq puts there."""

        @task
        async def old(ctx: dict[Any, Any], number: int) -> list[Any]:
            await ctx["session"].execute(INSERT, {"words": "a"})
            kept = ("redis", "http", "job_id", "job_try")
            return [number, type(ctx["enqueue_time"]).__name__, ctx["score"] > 0, *(ctx[key] for key in kept)]

        outcome = await execute(old, number=7, tries=1)
        assert from_json(outcome.result) == [7, "datetime", True, "arq's", "a client", "job-1", 2]
        assert await rows() == 1

    async def test_a_task_that_does_not_use_its_session_opens_no_connection(
        self, execute: Execute, postgres: Observer
    ) -> None:
        """Also where it asks for a session."""

        @task
        async def idle(session: AsyncSession) -> None: ...

        assert (await execute(idle)).kind is OutcomeKind.COMPLETED
        assert await postgres.backends() == 0


class TestSyncTasks:
    async def test_a_sync_task_runs_in_a_thread_with_its_own_session_and_job_context(
        self, execute: Execute, rows: Count
    ) -> None:
        """The event loop runs on meanwhile."""
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        @task
        def add(session: db.Session, words: str) -> list[Any]:
            session.execute(INSERT, {"words": words})
            time.sleep(0.3)
            return [threading.current_thread() is threading.main_thread(), current_job().job_id]

        ticking = asyncio.create_task(tick())
        outcome = await execute(add, "a")
        ticking.cancel()
        assert from_json(outcome.result) == [False, "job-1"]
        assert await rows() == 1
        assert ticks > 10

    @pytest.mark.parametrize("error", [ValueError("no"), StopIteration(7), SystemExit(1), KeyboardInterrupt()])
    async def test_whatever_a_sync_task_raises_fails_its_job(
        self, execute: Execute, rows: Count, error: BaseException
    ) -> None:
        """A future cannot hold `StopIteration`: it arrives as `RuntimeError`, as from a coroutine."""

        @task(timeout=5)
        def fail(session: db.Session) -> None:
            session.execute(INSERT, {"words": "a"})
            raise error

        outcome = await execute(fail)
        assert outcome.kind is OutcomeKind.FAILED
        assert error in (outcome.error, outcome.error and outcome.error.__cause__)
        assert await rows() == 0

    async def test_a_coroutine_that_a_sync_task_returns_is_awaited_in_the_jobs_scope(
        self, execute: Execute, rows: Count
    ) -> None:
        """A wrapper may run an `async def` itself, or return its coroutine.

        The event loop awaits the coroutine with the context variables that the wrapper has set.
        """
        tenant: contextvars.ContextVar[str] = contextvars.ContextVar("tenant", default="nobody's")

        async def body(words: str) -> str:
            await asyncio.sleep(0.01)
            return f"{tenant.get()} {words}, {threading.current_thread() is threading.main_thread()}"

        @task
        @functools.wraps(body)
        def runs_it(words: str) -> str:
            return asyncio.run(body(words))

        @task
        @functools.wraps(body)
        def returns_it(words: str) -> Any:
            tenant.set("mine")
            return body(words)

        async def add(session: db.AsyncSession) -> None:
            await session.execute(INSERT, {"words": "a"})

        @task
        @functools.wraps(add)
        def wrapped(session: db.AsyncSession) -> Any:
            return add(session)

        wrapped.check()
        assert from_json((await execute(runs_it, "a")).result) == "nobody's a, False"
        assert from_json((await execute(returns_it, "b")).result) == "mine b, True"
        assert (await execute(wrapped)).kind is OutcomeKind.COMPLETED
        assert await rows() == 1

    async def test_a_coroutine_that_a_sync_task_returns_after_its_timeout_is_not_awaited(
        self, execute: Execute
    ) -> None:
        """The coroutine is closed."""

        async def body() -> None:
            raise AssertionError("it is too late")

        @task(timeout=0.05)
        @functools.wraps(body)
        def slow() -> Any:
            time.sleep(0.2)
            return body()

        @task(timeout=0.05)
        def returns_slow() -> Any:
            return asyncio.sleep(5)

        for each in (slow, returns_slow):
            assert isinstance((await execute(each)).error, TimeoutError)

    async def test_a_sync_task_that_swallows_a_database_error_fails(self, execute: Execute, rows: Count) -> None:
        """A1 holds for psycopg, too."""

        @task
        def swallow(session: db.Session) -> None:
            session.execute(INSERT, {"words": "a"})
            try:
                session.execute(text("SELECT 1/0"))
            except Exception:  # noqa: BLE001 - what it is about
                return

        assert isinstance((await execute(swallow)).error, db.PoisonedTransactionError)
        assert await rows() == 0

    async def test_a_sync_task_that_lost_its_connection_runs_again(
        self, execute: Execute, postgres: Observer, rows: Count
    ) -> None:
        """A7 holds for psycopg, too."""
        loop = asyncio.get_running_loop()
        attempts: list[int] = []

        @task(max_tries=1)
        def add(session: db.Session) -> None:
            session.execute(INSERT, {"words": "a"})
            attempts.append(1)
            if len(attempts) == 1:
                asyncio.run_coroutine_threadsafe(postgres.terminate_backends(), loop).result()
            session.execute(INSERT, {"words": "b"})

        assert (await execute(add)).kind is OutcomeKind.COMPLETED
        assert len(attempts) == 2
        assert await rows() == 2

    async def test_as_many_sync_tasks_run_at_once_as_there_are_threads(self, harness: ExecutorHarness) -> None:
        """Four threads, four functions at once."""
        together = threading.Barrier(4, timeout=5)

        @task
        def meet() -> int:
            return together.wait()

        outcomes = await asyncio.gather(*(harness.run(meet) for _ in range(4)))
        assert sorted(outcome.result for outcome in outcomes) == [b"0", b"1", b"2", b"3"]

    @pytest.mark.usefixtures("broker")
    async def test_a_job_that_a_sync_task_enqueues_commits_or_rolls_back_with_it(
        self, execute: Execute, observer: redis.Redis
    ) -> None:
        """The task calls `asyncio.run(other.enqueue(...))` in its thread."""

        @task
        def hand_on(session: db.Session, fails: bool) -> str:
            job = asyncio.run(add_one.enqueue())
            if fails:
                raise ValueError
            return job.job_id

        assert (await execute(hand_on, True)).kind is OutcomeKind.FAILED
        assert observer.dbsize() == 0
        outcome = await execute(hand_on, False)
        assert observer.zrange("arq:queue", 0, -1) == [from_json(outcome.result)]

    async def test_a_sync_task_may_ask_for_arqs_ctx(self, execute: Execute) -> None:
        """It finds its job's id there."""

        @task
        def old(ctx: dict[Any, Any]) -> str:
            return str(ctx["job_id"])

        assert (await execute(old)).result == b'"job-1"'


@task
async def add_one(session: db.AsyncSession) -> str:
    await session.execute(INSERT, {"words": "body"})
    return "done"


class TestHooks:
    @pytest.mark.usefixtures("broker")
    async def test_jobs_of_a_sync_task_roll_back_with_it_although_a_hook_has_another_session(
        self, make_harness: MakeHarness, observer: redis.Redis
    ) -> None:
        """The task's own transaction fails at its COMMIT."""

        async def start(ctx: dict[Any, Any]) -> None: ...

        @task
        def hand_on(session: db.Session) -> None:
            asyncio.run(add_one.enqueue())
            session.execute(text("CREATE TEMP TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
            session.execute(text("INSERT INTO late VALUES (1), (1)"))

        assert (await make_harness(on_job_start=start).run(hand_on)).kind is OutcomeKind.FAILED
        assert observer.dbsize() == 0

    async def test_hooks_commit_in_the_jobs_transaction(self, make_harness: MakeHarness, rows: Count) -> None:
        """What `on_job_start` and `on_job_end` write is committed with the job, in one transaction."""

        async def start(ctx: dict[Any, Any]) -> None:
            await ctx["session"].execute(INSERT, {"words": f"start {ctx['job_id']} {ctx['job_try']}"})

        async def end(ctx: dict[Any, Any]) -> None:
            await ctx["session"].execute(INSERT, {"words": "end"})

        outcome = await make_harness(on_job_start=start, on_job_end=end).run(add_one)
        assert (outcome.kind, outcome.result) == (OutcomeKind.COMPLETED, b'"done"')
        assert await rows() == 3

    @pytest.mark.parametrize("which", ["on_job_start", "on_job_end"])
    async def test_a_hook_that_raises_fails_its_job(self, make_harness: MakeHarness, rows: Count, which: str) -> None:
        """The job and all hooks are rolled back. The worker goes on."""

        async def broken(ctx: dict[Any, Any]) -> None:
            raise LookupError(which)

        harness = make_harness(**{which: broken})
        for _ in range(2):
            outcome = await harness.run(add_one)
            assert (outcome.kind, repr(outcome.error)) == (OutcomeKind.FAILED, f"LookupError('{which}')")
        assert await rows() == 0

    @pytest.mark.parametrize("error", [LookupError, SystemExit])
    async def test_an_on_job_end_hook_that_raises_does_not_replace_the_jobs_own_error(
        self, make_harness: MakeHarness, caplog: pytest.LogCaptureFixture, error: type[BaseException]
    ) -> None:
        """The hook's error is logged."""

        async def broken(ctx: dict[Any, Any]) -> None:
            raise error

        @task
        async def fail() -> None:
            raise ValueError("the job's own")

        outcome = await make_harness(on_job_end=broken).run(fail)
        assert repr(outcome.error) == 'ValueError("the job\'s own")'
        assert "on_job_end failed" in caplog.text

    async def test_on_job_end_is_called_after_failed_attempts_too(self, make_harness: MakeHarness) -> None:
        """`on_job_end` is called once for each attempt that began, however it ended."""
        told: list[str] = []

        async def end(ctx: dict[Any, Any]) -> None:
            told.append(ctx["job_id"])

        @task(timeout=0.05)
        async def fail(how: int) -> None:
            if how == 0:
                raise worker.Retry
            await asyncio.sleep(how)

        harness = make_harness(on_job_end=end)
        for how in (0, 5):
            await harness.run(fail, how)
        assert told == ["job-1", "job-2"]

    async def test_on_job_start_is_not_called_for_a_job_with_wrong_arguments(self, make_harness: MakeHarness) -> None:
        """Such a job does not start."""
        told: list[str] = []

        async def start(ctx: dict[Any, Any]) -> None:
            told.append(ctx["job_id"])

        @task
        async def count(number: int) -> None: ...

        harness = make_harness(on_job_start=start)
        execution = harness.deliver(count, 1)
        execution.message = Message("1", count.name, ("x",))
        assert (await harness.start(count, execution)).kind is OutcomeKind.FAILED
        assert told == []

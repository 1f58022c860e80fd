"""Jobs of functions written for arq: their ``ctx``, their hooks, their tries, and the log lines."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.worker import RetryJob, func
from redis import Redis

from tests.waiting import eventually
from tests.worker.conftest import MakeHarness
from tests.worker.engine.conftest import StartWorker
from worker import JobFailed, Task, task
from worker.cron import from_arq
from worker.engine.outcome import OutcomeKind
from worker.message import deserialize, serialize


@pytest.fixture
async def stock(redis_url: str) -> AsyncIterator[ArqRedis]:
    """A stock producer with Tandem's codec."""
    async with ArqRedis.from_url(redis_url) as client:
        client.job_serializer, client.job_deserializer = serialize, deserialize
        yield client


def arq_task(function: Callable[..., Any], **options: Any) -> Task[Any, Any]:
    """The task that a registry makes of `func(function)`."""
    return from_arq(func(function, name=function.__name__, **options))


@task
async def double(number: int) -> int:
    return 2 * number


class TestContext:
    async def test_the_hooks_and_the_job_share_one_ctx(self, make_harness: MakeHarness) -> None:
        """What one of them puts in, the next finds."""
        seen: list[Any] = []

        async def on_start(ctx: dict[Any, Any]) -> None:
            ctx["by_start"] = 1

        async def on_end(ctx: dict[Any, Any]) -> None:
            seen.append((ctx["by_start"], ctx["by_job"]))

        async def use(ctx: dict[Any, Any]) -> int:
            ctx["by_job"] = 2
            found: int = ctx["by_start"]
            return found

        harness = make_harness(on_job_start=on_start, on_job_end=on_end)
        assert (await harness.run(arq_task(use))).result == b"1"
        assert seen == [(1, 2)]

    @pytest.mark.usefixtures("database")
    async def test_after_job_end_gets_the_ctx_of_the_job(self, start: StartWorker) -> None:
        """Also if no other hook asks for it."""
        seen: list[Any] = []

        async def use(ctx: dict[Any, Any]) -> None:
            ctx["by_job"] = 2

        async def after(ctx: dict[Any, Any]) -> None:
            seen.append((ctx["by_job"], ctx["job_id"]))

        taken = arq_task(use)
        async with start(taken, after_job_end=after) as worker:
            job = await taken.enqueue()
            await worker.idle()
        assert seen == [(2, job.job_id)]

    async def test_what_the_project_puts_into_ctx_stays_and_the_session_moves_aside(
        self, make_harness: MakeHarness
    ) -> None:
        """The session is then `ctx["db_session"]`. A resource of the same name gives way, too."""

        async def use(ctx: dict[Any, Any]) -> list[Any]:
            return [ctx["session"], ctx["http"], ctx["job_id"], (await ctx["db_session"].connection()) is not None]

        harness = make_harness(arq_context={"session": "mine", "http": "mine too", "job_id": "no"})
        assert (await harness.run(arq_task(use))).result == b'["mine","mine too","job-1",true]'

    async def test_the_hooks_are_not_part_of_the_jobs_timeout(self, make_harness: MakeHarness) -> None:
        """As in arq. The job's own time counts from the end of `on_job_start`."""

        async def slow(_ctx: dict[Any, Any]) -> None:
            await asyncio.sleep(0.4)

        async def slow_too() -> None:
            await asyncio.sleep(0.2)

        harness = make_harness(on_job_start=slow, on_job_end=slow)
        harness.timeout = 0.3
        assert (await harness.run(task(slow_too))).kind is OutcomeKind.COMPLETED


class TestAfterJobEnd:
    async def test_it_finds_the_result_of_its_job(self, start: StartWorker, observer: Redis) -> None:
        """It is called when Redis has the outcome."""
        found: list[Any] = []

        async def after(ctx: dict[Any, Any]) -> None:
            found.append(observer.exists(f"arq:result:{ctx['job_id']}"))

        async with start(double, after_job_end=after) as worker:
            for number in range(20):
                await double.enqueue(number)
            await worker.idle()
        assert found == [1] * 20

    async def test_it_can_enqueue_its_jobs_id_again(self, start: StartWorker) -> None:
        """The id is free by then, if no result is kept."""
        runs: list[str] = []

        @task(keep_result=0)
        async def again() -> None: ...

        async def after(ctx: dict[Any, Any]) -> None:
            runs.append(ctx["job_id"])
            if len(runs) < 3:
                await again.using(job_id="again").enqueue()

        async with start(again, after_job_end=after) as worker:
            await again.using(job_id="again").enqueue()
            await worker.idle()
        assert runs == ["again"] * 3

    async def test_it_is_not_called_for_a_job_that_did_not_run(self, start: StartWorker, stock: ArqRedis) -> None:
        """Its task is unknown, or its arguments are wrong."""
        called: list[str] = []

        async def after(ctx: dict[Any, Any]) -> None:
            called.append(ctx["job_id"])

        async with start(double, after_job_end=after, unknown_for=0.5) as worker:
            jobs = [await stock.enqueue_job("missing"), await stock.enqueue_job("double", "no number")]
            for job in jobs:
                assert job is not None
                with pytest.raises(Exception, match=r"missing|number"):
                    await job.result(timeout=10)
            ran = await double.enqueue(1)
            await worker.idle()
        assert called == [ran.job_id]

    async def test_a_drain_does_not_wait_for_the_hook_of_an_outcome_that_cannot_be_recorded(
        self, start: StartWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The hook is not called, and a log line says so."""
        monkeypatch.setattr("worker.engine.engine._FLUSHING", 0.3)
        monkeypatch.setattr("worker.engine.draining._ROLLBACK_TIMEOUT", 0.3)
        called: list[Any] = []

        async def after(ctx: dict[Any, Any]) -> None:
            called.append(ctx)

        async def away(*_: object) -> None:
            raise ConnectionError

        async with start(double, after_job_end=after, grace=0.2) as worker:
            monkeypatch.setattr(worker.broker, "finish", away)
            await double.enqueue(1)
            await eventually(lambda: worker.engine.counts["done"], equals=1)
            assert await worker.drain()
        assert not called
        assert "after_job_end was not called" in caplog.text


@pytest.mark.usefixtures("database")
class TestTries:
    async def test_the_try_that_a_stock_producer_gives_counts(self, start: StartWorker, stock: ArqRedis) -> None:
        """From it the tries go on, and the last allowed one is the last."""
        tries: list[int] = []

        async def attempt(ctx: dict[Any, Any]) -> None:
            tries.append(ctx["job_try"])
            raise RetryJob

        async with start(arq_task(attempt, max_tries=5), max_tries=5) as worker:
            job = await stock.enqueue_job("attempt", _job_try=3)
            assert job is not None
            with pytest.raises(JobFailed, match=r"TriesExhausted|RetryJob"):
                await job.result(timeout=10)
            await worker.idle()
        assert tries == [3, 4, 5]

    async def test_a_first_try_beyond_the_last_one_fails_the_job_unrun(
        self, start: StartWorker, stock: ArqRedis
    ) -> None:
        """With arq's words. A chain that raises `_job_try` with each job ends so."""
        ran: list[Any] = []

        async def attempt(ctx: dict[Any, Any]) -> None:
            ran.append(ctx)

        async with start(arq_task(attempt), max_tries=5):
            job = await stock.enqueue_job("attempt", _job_try=6)
            assert job is not None
            with pytest.raises(JobFailed, match="max 5 retries exceeded"):
                await job.result(timeout=10)
        assert not ran

    @pytest.mark.parametrize("error", [RetryJob, asyncio.CancelledError])
    async def test_retry_job_and_a_cancelled_error_of_its_own_run_an_arq_function_again(
        self, make_harness: MakeHarness, error: type[BaseException]
    ) -> None:
        """At once, and for a try."""

        async def again(_ctx: dict[Any, Any]) -> None:
            raise error

        harness, taken = make_harness(), arq_task(again)
        outcome = await harness.run(taken)
        assert (outcome.kind, outcome.delay) == (OutcomeKind.RETRIED, 0.0)
        assert (await harness.run(taken, tries=2)).kind is OutcomeKind.FAILED

    async def test_a_cancelled_error_of_its_own_ends_a_task_of_ours(self, make_harness: MakeHarness) -> None:
        """Only arq's functions get arq's meaning."""

        @task
        async def cancelled() -> None:
            raise asyncio.CancelledError

        assert (await make_harness().run(cancelled)).kind is OutcomeKind.FAILED


@pytest.mark.usefixtures("database")
class TestLogLines:
    async def test_the_lines_of_late_cancelled_and_failed_jobs_are_arqs(
        self, start: StartWorker, caplog: pytest.LogCaptureFixture
    ) -> None:
        """`delayed=`, "cancelled, will be run again", and the error's `extra` in the record."""

        class DetailedError(ValueError):
            def extra(self) -> dict[str, int]:
                return {"order": 7}

        async def fail(ctx: dict[Any, Any]) -> None:
            if ctx["job_try"] == 1:
                raise asyncio.CancelledError
            raise DetailedError("no")

        taken = arq_task(fail)
        with caplog.at_level(logging.INFO, "worker"):
            await taken.enqueue()
            await asyncio.sleep(1.3)
            async with start(taken, log_jobs="all") as worker:
                await worker.idle()
        lines = [record for record in caplog.records if re.search("[→↻!]", record.getMessage())]
        assert re.search(r"→ \w+:fail\(\) delayed=1\.[3-9]\ds$", lines[0].getMessage())
        assert lines[1].getMessage().endswith(":fail cancelled, will be run again")
        assert re.search(r"→ \w+:fail\(\) try=2", lines[2].getMessage())
        assert vars(lines[3])["extra"] == {"order": 7}


class TestHealth:
    async def test_the_health_record_has_arqs_name_and_form_until_the_last_worker_ends(
        self, start: StartWorker, observer: Redis
    ) -> None:
        """A probe that knows arq's key alone finds the workers."""
        pattern = r"\w{3}-\d\d \d\d:\d\d:\d\d j_complete=\d j_failed=0 j_retried=0 j_ongoing=0 queued=0"
        key = "arq:queue:health-check"
        async with start(double, id="a") as one, start(double, id="b") as other:
            await eventually(lambda: observer.exists(f"{key}:a", f"{key}:b"), equals=2)
            assert re.fullmatch(pattern, str(observer.get(key)))
            await one.drain()
            assert observer.exists(key)
            await other.drain()
        assert not observer.exists(key)

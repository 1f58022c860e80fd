"""Jobs in a real worker, ``arq worker.Settings``: their results, and the rows that they leave."""

import asyncio
import json
import pickle
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis, create_pool

import db
import worker
from tests.commands import Command
from tests.lifecycle import job_tasks
from tests.servers import Observer
from tests.waiting import eventually
from worker import Job, JobFailed, JobStatus, deserialize, serialize
from worker.settings import redis_settings

SOON = 20.0  # seconds that a worker may need to start, and to run a job


@pytest.fixture
async def arq(
    worker_settings: dict[str, str], notes: None, broker: worker.Broker, tmp_path: Path
) -> AsyncIterator[Command]:
    """A worker with the tasks of `job_tasks`."""
    settings = worker_settings | {"WORKER_REGISTRY": "tests.lifecycle.job_tasks"}
    with Command("arq", "worker.Settings", folder=tmp_path, environment=settings) as command:
        yield command


@pytest.fixture
async def words(postgres: Observer) -> Any:
    """The words of all rows of `note`, sorted."""

    async def ask() -> list[str]:
        return [row["words"] for row in await postgres.fetch("SELECT words FROM note ORDER BY words")]

    return ask


@pytest.fixture
async def arq_client(redis_url: str) -> AsyncIterator[ArqRedis]:
    """A stock arq client with Tandem's serializers."""
    client = await create_pool(redis_settings(redis_url), job_serializer=serialize, job_deserializer=deserialize)
    yield client
    await client.aclose()


@pytest.mark.usefixtures("arq")
class TestResults:
    async def test_results_have_the_types_that_the_tasks_declare(self, words: Any, arq_client: ArqRedis) -> None:
        """Coroutines and plain functions, with sessions, resources and retries, leave the rows that they committed."""
        receipt = await job_tasks.add.enqueue("abc")
        threaded = await job_tasks.add_in_thread.enqueue("from a thread")
        third = await job_tasks.retry_twice.enqueue()
        greeting = await job_tasks.greet.using(job_id="a:b c/ü🚀\n*?").enqueue(name="World")
        await arq_client.enqueue_job("arq_function", 21, _job_id="old")
        assert await receipt.result(SOON) == job_tasks.Receipt(number=3, at=datetime(2026, 1, 2, tzinfo=UTC))
        assert await threaded.result(SOON) == "from a thread"
        assert await third.result(SOON) == 3
        assert await greeting.result(SOON) == "Hello, World"
        assert await Job("old").result(SOON) == [42, 1, "Hello"]
        info = await third.info()
        assert info is not None
        assert (info.tries, info.success, info.result) == (3, True, 3)
        expected = ["abc", "arq 21", "attempt 3", "from a thread", "from arq 21"]
        assert await eventually(words, timeout=SOON, equals=expected)

    async def test_errors_reach_the_caller_and_leave_no_row(self, arq: Command, words: Any, postgres: Observer) -> None:
        """Each failure is reported with its own error, and the worker goes on."""
        for how, kind, reason in (
            ("built-in", KeyError, "built-in"),
            ("its own", JobFailed, "tests.lifecycle.job_tasks.OutOfStockError: its own"),
            ("cancelled", asyncio.CancelledError, "cancelled"),
            ("exit", JobFailed, "SystemExit: 3"),
            ("unprintable", JobFailed, "UnprintableError: <cannot be printed: LookupError>"),
            ("swallow", JobFailed, "PoisonedTransactionError"),
            ("result", TypeError, "JSON cannot express this builtin_function_or_method"),
            ("deferred", JobFailed, "violates foreign key constraint"),
        ):
            job = await job_tasks.fail.enqueue(how)
            with pytest.raises(kind) as caught:
                await job.result(SOON)
            assert reason in str(caught.value)
            info = await job.info()
            assert info is not None
            assert (info.success, info.tries, await job.status()) == (False, 1, JobStatus.complete)
        with pytest.raises(TimeoutError, match=r"exceed_timeout took longer than its timeout, 0\.3 s"):
            await (await job_tasks.exceed_timeout.enqueue()).result(SOON)
        assert await (await job_tasks.greet.enqueue("after all that")).result(SOON) == "Hello, after all that"
        assert "Logging error" not in arq.output
        assert await words() == []
        await eventually(lambda: postgres.backends("active"), equals=0)
        assert await postgres.idle_in_transaction() == 0

    async def test_a_job_enqueued_by_a_job_exists_if_and_only_if_that_job_commits(self, words: Any) -> None:
        """It runs if the outer job commits, and does not exist if that fails."""
        with pytest.raises(ValueError):  # noqa: PT011 - the task's own, which has no text
            await (await job_tasks.enqueue_add.enqueue("lost", commit=False)).result(SOON)
        await (await job_tasks.enqueue_add.enqueue("kept", commit=True)).result(SOON)
        assert await eventually(words, timeout=SOON, equals=["handed on kept", "kept"])

    async def test_a_job_enqueued_in_a_scope_runs_only_after_its_commit(
        self, words: Any, database_url: str, broker: worker.Broker
    ) -> None:
        """The job of a scope that rolls back never runs."""
        database = db.Database(database_url, default=True)
        try:
            async with db.scope():
                await (await db.session()).execute(job_tasks.INSERT, {"words": "row"})
                kept = await job_tasks.add.enqueue("kept")
                assert await broker.depth("arq:queue") == 0
            await kept.result(SOON)
            with pytest.raises(ZeroDivisionError):
                async with db.scope():
                    await job_tasks.add.enqueue("lost")
                    raise ZeroDivisionError
        finally:
            await database.dispose()
            db.set_default_database(None)
        await (await job_tasks.add.enqueue("later")).result(SOON)
        assert await words() == ["kept", "later", "row"]


@pytest.mark.usefixtures("arq")
class TestStockClient:
    async def test_a_stock_arq_client_enqueues_jobs_and_reads_results(self, arq_client: ArqRedis, words: Any) -> None:
        """`enqueue_job` with positional and named arguments, then `result`, `info` and `status`."""
        job = await arq_client.enqueue_job("add", "abc")
        assert job is not None
        assert await job.result(timeout=SOON, poll_delay=0.05) == {"number": 3, "at": "2026-01-02T00:00:00Z"}
        info = await job.result_info()
        assert info is not None
        assert (info.success, info.function, list(info.args), info.queue_name) == (True, "add", ["abc"], "arq:queue")
        assert (await job.status()).value == "complete"
        failing = await arq_client.enqueue_job("fail", how="built-in")
        assert failing is not None
        with pytest.raises(KeyError, match="built-in"):
            await failing.result(timeout=SOON, poll_delay=0.05)
        assert await words() == ["abc"]

    async def test_wrong_arguments_from_a_stock_client_fail_the_job(self, arq_client: ArqRedis, words: Any) -> None:
        """Tandem's own `enqueue` would have refused them. The job fails before a session is opened."""
        for job in (
            await arq_client.enqueue_job("add"),
            await arq_client.enqueue_job("add", words=1),
            await arq_client.enqueue_job("add", {"a": 1}),
        ):
            assert job is not None
            with pytest.raises((JobFailed, TypeError), match="words"):
                await job.result(timeout=SOON, poll_delay=0.05)
        assert await words() == []


class TestBadInput:
    async def test_an_unreadable_payload_fails_its_job_alone(
        self, arq: Command, broker: worker.Broker, words: Any
    ) -> None:
        """The job fails with an error that says what is wrong with its payload, and the worker goes on."""
        redis = broker.redis
        et = 1_700_000_000_000
        for job_id, raw, reason in (
            ("not-json", b"\xff\xfe", "not JSON"),
            ("empty", b"", "not JSON"),
            ("no-object", b"[1,2]", "expected an object, got list"),
            ("no-job", b"{}", "it needs f"),
            ("no-name", json.dumps({"f": ["x"], "a": [], "k": {}, "et": et}).encode(), "it needs f"),
            ("no-time", json.dumps({"f": "add", "a": ["x"], "k": {}, "et": 10**30}).encode(), "et, its enqueue time"),
            ("pickle", pickle.dumps({"f": "add", "a": ("x",), "k": {}, "et": et, "t": None}), "WORKER_ACCEPT_PICKLE"),
        ):
            await redis.set(f"arq:job:{job_id}", raw, px=60_000)
            await redis.zadd("arq:queue", {job_id: 1})
            with pytest.raises(JobFailed) as caught:
                await Job(job_id).result(SOON)
            assert caught.value.type == "worker.errors.PayloadError"
            assert reason in caught.value.message
        await (await job_tasks.add.enqueue("after all that")).result(SOON)
        assert await words() == ["after all that"]
        assert "internal error" not in arq.output

    @pytest.mark.usefixtures("notes")
    async def test_a_pickled_job_runs_if_accept_pickle_is_set(
        self, worker_settings: dict[str, str], redis_url: str, words: Any, tmp_path: Path
    ) -> None:
        """So an application can move from arq to Tandem with jobs in its queue."""
        client = await create_pool(redis_settings(redis_url))
        await client.enqueue_job("add", words="pickled")
        await client.aclose()
        settings = worker_settings | {
            "WORKER_REGISTRY": "tests.lifecycle.job_tasks",
            "WORKER_ACCEPT_PICKLE": "true",
        }
        with Command("arq", "worker.Settings", "--burst", folder=tmp_path, environment=settings) as command:
            assert await command.ends() == 0
        assert await words() == ["pickled"]

    @pytest.mark.usefixtures("arq")
    async def test_a_job_of_an_unknown_task_fails_with_the_name_of_the_task(
        self, worker_settings: dict[str, str], tmp_path: Path, arq_client: ArqRedis
    ) -> None:
        """It fails after WORKER_UNKNOWN_FOR, the time that a deploy may need to bring the task."""
        job = await arq_client.enqueue_job("nobody_knows", _queue_name="strange")
        assert job is not None
        settings = worker_settings | {
            "WORKER_REGISTRY": "tests.lifecycle.job_tasks",
            "WORKER_QUEUE": "strange",
            "WORKER_UNKNOWN_FOR": "0.5",
        }
        with (
            Command("arq", "worker.Settings", folder=tmp_path, environment=settings),
            pytest.raises(JobFailed, match="nobody_knows") as caught,
        ):
            await Job(job.job_id, queue_name="strange").result(SOON)
        assert caught.value.type == "worker.errors.UnknownTaskError"


class TestSchedule:
    @pytest.mark.usefixtures("notes")
    async def test_scheduled_tasks_run_without_being_enqueued(
        self, worker_settings: dict[str, str], words: Any, tmp_path: Path
    ) -> None:
        """`@cron` and arq's own `cron()` in TASKS."""
        settings = worker_settings | {"WORKER_REGISTRY": "tests.lifecycle.scheduled_tasks"}

        async def kinds() -> set[str]:
            return {each.rpartition(" ")[0] for each in await words()}

        with Command("arq", "worker.Settings", folder=tmp_path, environment=settings):
            await eventually(kinds, timeout=SOON, equals={"tick", "arq cron"})

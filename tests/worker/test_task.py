"""Tasks: declaring them, and enqueueing jobs outside of a transaction and inside one."""

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest
import redis
from pydantic import ValidationError
from sqlalchemy import text

import db
import worker
from db.database import Database
from tests.worker.conftest import Count, RoundTrips
from worker import Task, cron, task
from worker.client.options import TaskOptions
from worker.errors import ConfigError, PayloadNotJSONError, PayloadTooLargeError, TaskDefinitionError
from worker.ledger import Ledger

REPOSITORY = Path(__file__).parents[2]


@task
async def add(session: db.AsyncSession, words: str, times: int = 1) -> int:
    session.add_all([])
    return times


@task(queue="mail", transactional=False)
async def send(to: str) -> None: ...


def queued(observer: redis.Redis, queue: str = "arq:queue") -> list[str]:
    """Return the ids in a queue."""
    ids: Any = observer.zrange(queue, 0, -1)
    return list(ids)


class TestDeclaring:
    def test_a_task_is_the_function_it_wraps(self) -> None:
        """Decorating keeps name, docstring and signature, and a call is a plain call."""

        @task
        async def documented(a: int) -> int:
            """Doubles."""
            return a * 2

        assert (vars(documented)["__name__"], documented.__doc__) == ("documented", "Doubles.")
        assert documented.name.endswith("documented")
        coroutine = documented(4)
        with pytest.raises(StopIteration, match="8"):
            coroutine.send(None)

    def test_the_name_of_a_task_is_its_qualname_or_the_given_one(self) -> None:
        """The qualname is the default, as in arq; `name=` is for two functions of one name."""
        assert add.name == "add"
        assert task(name="mail.send")(send.fn).name == "mail.send"

    def test_a_task_is_asynchronous_if_the_outermost_callable_is(self) -> None:
        """An `async def` runs on the loop; a plain wrapper is called in a thread, whatever it wraps."""

        def plain(fn: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(fn)
            def call(*args: Any) -> Any:
                return fn(*args)

            return call

        def asynchronous(fn: Callable[..., Any]) -> Callable[..., Any]:
            @wraps(fn)
            async def call(*args: Any) -> Any:
                return fn(*args)

            return call

        async def coroutine() -> None: ...
        def function() -> None: ...

        class Resizer:
            async def __call__(self) -> None: ...

        assert not task(coroutine).is_sync
        assert not Task(partial(coroutine), "partial", TaskOptions()).is_sync
        assert not Task(Resizer(), "callable", TaskOptions()).is_sync
        assert Task(partial(function), "partial", TaskOptions()).is_sync
        assert task(plain(coroutine)).is_sync
        assert not task(asynchronous(function)).is_sync
        assert task(plain(function)).is_sync
        assert task(function).is_sync

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"timeout": 0}, "timeout=0 must be more than 0"),
            ({"timeout": -1}, "timeout=-1: give seconds"),
            ({"timeout": float("inf")}, "timeout=inf: give seconds"),
            ({"max_tries": 0}, "max_tries=0: give a whole number"),
            ({"max_tries": 0.5}, "max_tries=0.5: give a whole number"),
            ({"keep_result": timedelta(seconds=-1)}, "keep_result=.*: give seconds"),
            ({"retry_on": ValueError}, "retry_on=.*: give exception classes in a tuple"),
            ({"retry_on": ("ValueError",)}, "retry_on=.*: give exception classes in a tuple"),
            ({"retry_on": (KeyboardInterrupt,)}, "retry_on=.*: give exception classes in a tuple"),
            ({"name": ""}, "name='': give a text"),
            ({"queue": 3}, "queue=3: give a text"),
        ],
    )
    def test_wrong_task_options_raise_where_they_are_given(self, options: dict[str, Any], reason: str) -> None:
        """A number out of range, or a thing that is no exception class, raises an error that names the option."""
        with pytest.raises(TaskDefinitionError, match=reason):
            task(**options)

    @pytest.mark.parametrize("thing", [int, "send", object(), add, staticmethod(len), len])
    def test_only_a_function_can_be_a_task(self, thing: Any) -> None:
        """Classes, static methods, built-in functions and tasks are refused."""
        with pytest.raises(TaskDefinitionError):
            task(thing)

    def test_check_reports_tasks_that_cannot_work(self) -> None:
        """`Task.check`, which the registry calls, raises one line for each mistake; it names the function."""

        async def async_with_sync(session: db.Session) -> None: ...
        def sync_with_async(session: db.AsyncSession) -> None: ...
        def generator() -> Iterator[int]:
            yield 1

        async def async_generator() -> Any:
            yield 1

        async def needy(a: int, b: int = 2) -> None: ...

        for fn, reason in (
            (async_with_sync, "session is a Session in an async function: annotate it AsyncSession"),
            (sync_with_async, "session is an AsyncSession in a plain function: annotate it Session"),
            (generator, "it is a generator, and a job has one result: return a list"),
            (async_generator, "it is a generator, and a job has one result: return a list"),
        ):
            with pytest.raises(TaskDefinitionError, match=reason) as caught:
                task(fn).check()
            assert fn.__name__ in str(caught.value)
        with pytest.raises(TaskDefinitionError, match="scheduled tasks are called without arguments: give a a default"):
            cron("* * * * *")(needy).check()


@pytest.mark.usefixtures("broker")
class TestOutsideAScope:
    async def test_enqueue_is_one_round_trip(self, observer: redis.Redis) -> None:
        """One job, one request to Redis."""
        await add.enqueue("warm")
        trips = RoundTrips(observer)
        job = await add.enqueue("a", times=3)
        assert trips() == 1
        assert job.job_id in queued(observer)
        assert job.is_new
        assert (job.queue_name, await job.status()) == ("arq:queue", worker.JobStatus.queued)

    async def test_enqueue_many_is_one_round_trip_for_each_thousand_jobs(self, observer: redis.Redis) -> None:
        """3,000 jobs are 3 requests."""
        await add.enqueue("warm")
        trips = RoundTrips(observer)
        jobs = await add.enqueue_many({"words": str(number)} for number in range(3000))
        assert trips() == 3
        assert len({job.job_id for job in jobs}) == 3000
        assert observer.zcard("arq:queue") == 3001
        info = await jobs[1234].info()
        assert info is not None
        assert (info.task, info.kwargs) == ("add", {"words": "1234"})

    async def test_enqueue_many_without_calls_sends_nothing(self, observer: redis.Redis) -> None:
        """An empty list sends nothing."""
        trips = RoundTrips(observer)
        assert await add.enqueue_many([]) == []
        assert trips() == 0

    async def test_large_payloads_are_sent_in_smaller_batches(self, observer: redis.Redis) -> None:
        """Thirty arguments of 900 kB are sent in several requests."""
        trips = RoundTrips(observer)
        await add.enqueue_many([{"words": "x" * 900_000}] * 30)
        assert trips() >= 4
        assert observer.zcard("arq:queue") == 30

    @pytest.mark.parametrize(
        ("args", "kwargs", "error"),
        [
            ((), {}, ValidationError),
            ((1,), {}, ValidationError),
            (("a", "b", "c"), {}, TypeError),
            (("a",), {"words": "b"}, TypeError),
            (("a",), {"unknown": 1}, ValidationError),
            (("a",), {"session": None}, ValidationError),
            (("\ud800",), {}, PayloadNotJSONError),
        ],
    )
    async def test_wrong_arguments_raise_and_queue_nothing(
        self, observer: redis.Redis, args: Any, kwargs: Any, error: type[Exception]
    ) -> None:
        """The error is raised in the caller, for one call or among many, and nothing is sent to Redis."""
        trips = RoundTrips(observer)
        with pytest.raises(error):
            await add.enqueue(*args, **kwargs)
        if not args:
            with pytest.raises(error):
                await add.enqueue_many([{"words": "good"}, kwargs])
        assert (trips(), observer.dbsize()) == (0, 0)

    async def test_a_payload_that_is_too_large_is_refused_and_queues_nothing(
        self, redis_url: str, observer: redis.Redis
    ) -> None:
        """More bytes than the queue allows raise an error that names the setting, alone or among many calls."""
        broker = worker.Broker(redis_url, max_payload=1000, default=True)
        trips = RoundTrips(observer)
        with pytest.raises(
            PayloadTooLargeError, match=r"add: the arguments have 20\d\d bytes, and WORKER_MAX_PAYLOAD allows 1000"
        ):
            await add.enqueue("x" * 2000)
        with pytest.raises(PayloadTooLargeError):
            await add.enqueue_many([{"words": "a"}, {"words": "x" * 2000}])
        await broker.close()
        assert (trips(), observer.dbsize()) == (0, 0)


class TestDefaultQueue:
    async def test_enqueueing_without_a_default_queue_names_the_setting(self) -> None:
        """With neither a default queue nor REDIS_URL the error says what to set."""
        with pytest.raises(ConfigError, match="REDIS_URL is not set"):
            await add.enqueue("a")

    async def test_the_default_queue_is_made_from_the_environment(
        self, redis_url: str, observer: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """REDIS_URL and WORKER_QUEUE are enough."""
        monkeypatch.setenv("REDIS_URL", redis_url)
        monkeypatch.setenv("WORKER_QUEUE", "mine")
        job = await add.enqueue("a")
        assert queued(observer, "mine") == [job.job_id]
        assert await worker.Job(job.job_id).status() is worker.JobStatus.queued
        await worker.default_broker().close()


@pytest.mark.usefixtures("broker")
class TestUsing:
    async def test_delay_and_at_set_the_due_time_and_expires_counts_from_it(self, observer: redis.Redis) -> None:
        """A delay counts from Redis' clock, `at` is a moment, and a job is kept for `expires` past its due time."""
        clock: Any = observer.time()
        seconds, microseconds = clock
        now = seconds * 1000 + microseconds / 1000
        delayed = await add.using(delay=60, expires=10).enqueue("a")
        moment = datetime.now(UTC) + timedelta(hours=1)
        timed = await add.using(at=moment, expires=timedelta(seconds=5)).enqueue("a")
        assert observer.zscore("arq:queue", delayed.job_id) == pytest.approx(now + 60_000, abs=2000)
        assert observer.zscore("arq:queue", timed.job_id) == round(moment.timestamp() * 1000)
        assert observer.pttl(f"arq:job:{delayed.job_id}") == pytest.approx(70_000, abs=2000)
        assert observer.pttl(f"arq:job:{timed.job_id}") == pytest.approx(3_605_000, abs=2000)
        assert await delayed.status() is worker.JobStatus.deferred

    async def test_a_job_expires_a_day_after_its_due_time_by_default(self, observer: redis.Redis) -> None:
        """The default is arq's."""
        job = await add.using(at=datetime(2020, 1, 1, tzinfo=UTC)).enqueue("a")
        assert observer.pttl(f"arq:job:{job.job_id}") == pytest.approx(86_400_000, abs=2000)
        assert await job.status() is worker.JobStatus.queued

    async def test_the_producers_clock_does_not_change_when_a_job_is_due(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A job of a producer whose clock is an hour ahead is due now."""
        late = time.time_ns() + 3600 * 10**9
        monkeypatch.setattr("time.time_ns", lambda: late)
        job = await add.enqueue("a")
        assert await job.status() is worker.JobStatus.queued

    @pytest.mark.parametrize("job_id", ["r7", "a:b c/ü🚀", "*?[x]", "new\nline", "0", "arq:job:x"])
    async def test_two_jobs_of_one_id_are_one_job_with_the_arguments_of_the_first(
        self, observer: redis.Redis, job_id: str
    ) -> None:
        """The id may have any characters."""
        first = await add.using(job_id=job_id).enqueue("first")
        second = await add.using(job_id=job_id).enqueue("second")
        assert (first.is_new, second.is_new) == (True, False)
        assert queued(observer) == [job_id]
        info = await second.info()
        assert info is not None
        assert (info.job_id, info.kwargs) == (job_id, {"words": "first"})

    async def test_an_id_is_taken_while_its_result_is_kept(self, observer: redis.Redis) -> None:
        """After the result has expired the id is free again."""
        await add.using(job_id="r7").enqueue("first")
        observer.delete("arq:job:r7", "arq:queue")
        observer.set("arq:result:r7", "{}", px=60_000)
        assert not (await add.using(job_id="r7").enqueue("second")).is_new
        observer.delete("arq:result:r7")
        assert (await add.using(job_id="r7").enqueue("third")).is_new

    async def test_one_id_cannot_name_many_jobs(self, observer: redis.Redis) -> None:
        """`enqueue_many` with a job id takes one call."""
        assert len(await add.using(job_id="r7").enqueue_many([{"words": "a"}])) == 1
        with pytest.raises(ValueError, match=r"one job_id \(r8\) cannot name 2 jobs"):
            await add.using(job_id="r8").enqueue_many([{"words": "a"}, {"words": "b"}])
        assert queued(observer) == ["r7"]

    async def test_the_queue_of_the_call_wins_over_the_tasks_and_that_over_the_default(
        self, observer: redis.Redis
    ) -> None:
        """`using(queue=...)` wins over the task's own queue, and that over the default one."""
        for job, name in (
            (await add.enqueue("a"), "arq:queue"),
            (await send.enqueue("a"), "mail"),
            (await send.using(queue="slow").enqueue("a"), "slow"),
        ):
            assert queued(observer, name) == [job.job_id]
            assert job.queue_name == name

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"delay": -1}, "delay=-1: give seconds"),
            ({"delay": float("nan")}, "delay=nan: give seconds"),
            ({"delay": 1e300}, "delay=1e.300: give seconds"),
            ({"delay": 1, "at": datetime.now(UTC)}, "delay or at, not both"),
            ({"at": datetime(2030, 1, 1)}, "has no time zone"),  # noqa: DTZ001 - the case under test
            ({"expires": 0}, "expires=0 must be more than 0"),
            ({"expires": timedelta(seconds=-1)}, "give seconds"),
            ({"job_id": ""}, "job_id='': give a text"),
            ({"job_id": "a\0b"}, "give a text of valid characters"),
            ({"job_id": "é" * 1001}, "has more than 2,000 bytes: give a hash of it"),
            ({"job_id": "\udcff"}, "give a text of valid characters"),
            ({"queue": ""}, "queue='': give a text"),
        ],
    )
    def test_wrong_job_options_raise_before_anything_is_enqueued(self, options: dict[str, Any], reason: str) -> None:
        """A wrong job option raises a `ValueError` that names it."""
        with pytest.raises(ValueError, match=reason):
            add.using(**options)

    def test_a_job_id_that_is_no_text_is_a_type_error(self) -> None:
        """Redis would turn a number into a text, and the job's handle would keep the number."""
        with pytest.raises(TypeError, match="job_id=7: give a text"):
            add.using(job_id=7)  # type: ignore[arg-type]  # the case under test


@pytest.fixture
def note(database: Database[db.AsyncSession]) -> Callable[[str], Any]:
    """Returns a function that adds a row in the open scope."""

    async def add_row(words: str) -> None:
        session = await db.session()
        await session.execute(text("INSERT INTO note (words) VALUES (:words)"), {"words": words})

    return add_row


@pytest.mark.usefixtures("broker", "database")
class TestInsideAScope:
    async def test_jobs_of_a_scope_are_published_after_its_commit_in_one_round_trip(
        self, observer: redis.Redis, note: Callable[[str], Any], rows: Count
    ) -> None:
        """Nothing is sent to Redis before the COMMIT, and then all jobs of all calls at once."""
        async with db.scope():
            await add.enqueue("warm")
        trips = RoundTrips(observer)
        async with db.scope():
            await note("a")
            single = await add.enqueue("a")
            many = await add.enqueue_many([{"words": "b"}, {"words": "c"}])
            assert single.is_new  # whether the id is taken is known at the COMMIT only
            assert trips() == 0
            assert await rows() == 0
        assert trips() == 1
        assert await rows() == 1
        assert {job.job_id for job in (single, *many)} < set(queued(observer))

    @pytest.mark.parametrize("job_id", [None, "named"])
    async def test_a_job_is_written_by_the_sync_session_that_the_scope_uses(
        self, database: db.Database, observer: redis.Redis, job_id: str | None
    ) -> None:
        """The job's row is in the same transaction as the scope's other rows, whatever its driver."""
        async with db.scope() as work:
            session = await db.session(database.sync)
            await asyncio.to_thread(session.execute, text("INSERT INTO note (words) VALUES ('a')"))
            job = await add.using(job_id=job_id).enqueue("a")
            await work.prepare()
            assert [unit.database for unit in work.scoped_sessions] == [database.sync]
        assert await Ledger().pending(job.job_id) is not None
        assert queued(observer) == [job.job_id]

    async def test_a_scope_that_used_no_session_publishes_its_jobs_too(self, observer: redis.Redis) -> None:
        """The scope's jobs are committed and published although no other statement was executed."""
        async with db.scope():
            job = await add.enqueue("a")
        assert queued(observer) == [job.job_id]

    async def test_a_job_is_not_published_after_a_rollback(
        self, observer: redis.Redis, note: Callable[[str], Any], rows: Count
    ) -> None:
        """After an exception, an early rollback, a close or a refused commit there is neither row nor job."""
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                await note("a")
                await add.enqueue("a")
                raise ZeroDivisionError
        async with db.scope():
            await note("b")
            await add.enqueue("b")
            await db.rollback()
        async with db.scope():
            await note("c")
            await add.enqueue("c")
            await db.close()
        with pytest.raises(ValueError, match="refused"):
            async with db.scope():
                db.before_commit(refuse)
                await add.enqueue("d")
        assert (observer.dbsize(), await rows()) == (0, 0)

    async def test_a_job_of_a_savepoint_that_is_rolled_back_is_not_published(
        self, observer: redis.Redis, note: Callable[[str], Any], rows: Count
    ) -> None:
        """Jobs outside of that savepoint are published."""
        async with db.scope():
            await note("kept")
            before = await add.enqueue("before")
            session = await db.session()
            with pytest.raises(ZeroDivisionError):
                async with session.begin_nested():
                    await note("lost")
                    await add.enqueue("lost")
                    raise ZeroDivisionError
            async with session.begin_nested():
                inside = await add.enqueue("inside")
        assert sorted(queued(observer)) == sorted([before.job_id, inside.job_id])
        assert await rows() == 1

    async def test_an_early_commit_publishes_the_jobs_so_far(
        self, observer: redis.Redis, note: Callable[[str], Any]
    ) -> None:
        """After `db.commit()` the jobs so far are published, also if the scope fails afterwards."""
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                await note("a")
                first = await add.enqueue("first")
                await db.commit()
                assert queued(observer) == [first.job_id]
                await add.enqueue("second")
                raise ZeroDivisionError
        assert queued(observer) == [first.job_id]

    async def test_a_job_that_is_not_transactional_is_published_at_once(self, observer: redis.Redis) -> None:
        """`using(transactional=False)` and `@task(transactional=False)` do not wait for the COMMIT."""
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                await add.using(transactional=False).enqueue("a")
                await send.enqueue("b")
                await send.using(transactional=True).enqueue("c")
                raise ZeroDivisionError
        assert (observer.zcard("arq:queue"), observer.zcard("mail")) == (1, 1)

    async def test_jobs_that_a_child_coroutine_enqueues_belong_to_its_scope(self, observer: redis.Redis) -> None:
        """The jobs of a child coroutine belong to the scope in which it was started."""
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                await asyncio.gather(add.enqueue("a"), add.enqueue("b"))
                raise ZeroDivisionError
        async with db.scope():
            await asyncio.gather(add.enqueue("a"), add.enqueue("b"))
        assert observer.zcard("arq:queue") == 2

    async def test_wrong_arguments_raise_at_once_inside_a_scope_too(self, observer: redis.Redis) -> None:
        """The error is raised at the call and not at the COMMIT; the scope can go on."""
        async with db.scope():
            with pytest.raises(ValidationError):
                await add.enqueue()  # type: ignore[call-arg]  # the case under test
            job = await add.enqueue("good")
        assert queued(observer) == [job.job_id]

    async def test_a_publish_that_fails_after_the_commit_is_no_error_of_the_caller(
        self, note: Callable[[str], Any], rows: Count, caplog: Any
    ) -> None:
        """An unreachable Redis does not undo a committed transaction: the job's row is there for the relay."""
        worker.Broker("redis://127.0.0.1:1/0", default=True)
        async with db.scope():
            await note("a")
            job = await add.enqueue("a")
        assert await rows() == 1
        assert await Ledger().pending(job.job_id) is not None
        assert "Redis did not take 1 committed job, which the relay will publish" in caplog.text

    async def test_a_queue_that_redis_cannot_serve_is_refused_before_the_commit(self) -> None:
        """A Redis Cluster serves hash-tagged queues only: the row of any other queue could not be published."""
        worker.Broker("redis+cluster://nobody.invalid", default=True)
        async with db.scope():
            with pytest.raises(worker.WorkerError, match="hash-tagged"):
                await add.enqueue("a")
        assert await Ledger().pending_after("", ["arq:queue"], 1) == []


async def refuse(session: object) -> None:
    raise ValueError("refused")


class TestImports:
    @pytest.mark.parametrize("imports", ["import tasks.census", "from worker import task"])
    def test_a_web_app_that_enqueues_loads_no_engine(self, imports: str) -> None:
        """Importing a task loads neither arq nor the engine nor the registry."""
        code = f"import sys; {imports}; print(*sys.modules)"
        loaded = subprocess.run(
            [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout.split()
        unwanted = (
            "arq",
            "worker.engine",
            "worker.settings",
            "worker.registry",
            "worker.embedded",
            "worker.process.runtime",
        )
        assert [name for name in loaded if name.startswith(unwanted)] == []
        assert "worker.task" in loaded

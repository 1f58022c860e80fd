"""Projects of arq's kind under `arq app.WorkerSettings`, and under `arq moved.Settings`, which `from_arq` makes of it.

What arq's README and documentation show, as projects of our own: each runs with stock arq and with Tandem, unchanged
and for producers that have not changed. The results are compared.
"""

import json
import signal
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

import pytest
from arq.connections import ArqRedis, create_pool
from arq.jobs import Job, JobStatus
from arq.worker import JobExecutionFailed

from tests.commands import Command
from tests.lifecycle.conftest import Project
from tests.waiting import eventually
from worker.settings import redis_settings

pytestmark = pytest.mark.usefixtures("broker")

PATIENCE = 60.0  # seconds for a result, also while a worker starts

HEAD = """
    import asyncio, os
    from arq import Retry, cron, func
    from arq.connections import RedisSettings

    SERVER = RedisSettings.from_dsn(os.environ["REDIS_URL"])
"""

MOVED = """
    from app import WorkerSettings
    from worker.settings import from_arq

    Settings = from_arq(WorkerSettings)
"""

Fleet = Callable[..., Command]
"""Starts a worker of the project, of stock arq or of Tandem."""


class Both:
    """A project of arq's kind, to be run by both."""

    def __init__(self, project: Project, client: ArqRedis) -> None:
        self.project = project
        self.client = client

    def write(self, source: str) -> None:
        """Write the project's module, ``app``."""
        self.project.write("app.py", HEAD + source)
        self.project.write("moved.py", MOVED)

    def stock(self, *arguments: str) -> Command:
        return self.project.command("arq", "app.WorkerSettings", *arguments)

    def ours(self, *arguments: str) -> Command:
        return self.project.command("arq", "moved.Settings", *arguments, WORKER_ACCEPT_PICKLE="true")

    async def see(self, seen: Callable[[Fleet], Awaitable[Any]]) -> Any:
        """Return what is seen of stock arq, if the same is seen of Tandem."""
        await self.client.flushdb()
        stock = await seen(self.stock)
        await self.client.flushdb()
        ours = await seen(self.ours)
        assert ours == stock
        return stock

    async def results(self, fleet: Fleet, jobs: Iterable[Job | None]) -> list[Any]:
        """Run a worker until these jobs have results."""
        with fleet() as worker:
            results = [await result(job) for job in jobs if job is not None]
            worker.send(signal.SIGTERM)
            await worker.ends()
        return results


async def result(job: Job) -> Any:
    """What there is to know of a job that has ended, without its times and its id."""

    async def info() -> Any:
        return await job.result_info()

    ended = await eventually(info, timeout=PATIENCE)
    value = repr(ended.result) if isinstance(ended.result, BaseException) else ended.result
    return ended.function, ended.args, ended.kwargs, ended.success, value, ended.job_try, ended.queue_name


@pytest.fixture
async def both(project: Project, redis_url: str) -> AsyncIterator[Both]:
    """See `Both`."""
    client = await create_pool(redis_settings(redis_url))
    yield Both(project, client)
    await client.aclose()


async def test_the_main_demo(both: Both) -> None:
    """A client that `on_startup` makes and `on_shutdown` closes, and three jobs that use it; in burst mode."""
    both.write("""
    class Http:
        async def get(self, url):
            return url.upper()

        async def aclose(self):
            print("closed")

    async def download(ctx, url):
        text = await ctx["session"].get(url)
        print(f"got {text}")
        return len(text)

    async def startup(ctx):
        ctx["session"] = Http()

    async def shutdown(ctx):
        await ctx["session"].aclose()

    class WorkerSettings:
        functions = [download]
        on_startup = startup
        on_shutdown = shutdown
        redis_settings = SERVER
    """)

    async def seen(fleet: Fleet) -> Any:
        jobs = [await both.client.enqueue_job("download", url) for url in ("one", "three", "seven")]
        with fleet("--burst") as worker:
            assert await worker.ends() == 0
            said = worker.output.count("got "), worker.output.count("closed")
        return [await result(job) for job in jobs if job is not None], said

    results, said = await both.see(seen)
    assert [each[4] for each in results] == [3, 5, 5]
    assert said == (3, 1)


async def test_deferred_jobs(both: Both) -> None:
    """By seconds, by a timedelta, and until a time that does not come."""
    both.write("""
    from datetime import datetime, timezone

    async def the_task(ctx):
        waited = datetime.now(timezone.utc) - ctx["enqueue_time"]
        return round(waited.total_seconds())

    class WorkerSettings:
        functions = [the_task]
        redis_settings = SERVER
    """)

    async def seen(fleet: Fleet) -> Any:
        enqueue = both.client.enqueue_job
        jobs = [await enqueue("the_task", _defer_by=1), await enqueue("the_task", _defer_by=timedelta(seconds=2))]
        late = await enqueue("the_task", _defer_until=datetime(2096, 1, 28))  # noqa: DTZ001 - as in the example
        assert late is not None
        with fleet() as worker:
            assert all(job is not None for job in jobs)
            values = [await job.result(timeout=PATIENCE, poll_delay=0.05) for job in jobs if job is not None]
            worker.send(signal.SIGTERM)
            await worker.ends()
        return [value >= at_least for value, at_least in zip(values, (1, 2), strict=True)], await late.status()

    assert await both.see(seen) == ([True, True], JobStatus.deferred)


async def test_job_ids(both: Both) -> None:
    """An id of the producer's own is taken while its job waits, and while its result is kept."""
    both.write("""
    async def the_task(ctx):
        return ctx["job_id"]

    class WorkerSettings:
        functions = [the_task]
        redis_settings = SERVER
    """)

    async def seen(fleet: Fleet) -> Any:
        jobs = [await both.client.enqueue_job("the_task", _job_id=job_id) for job_id in ("foobar", "foobar", "mine")]
        results = await both.results(fleet, jobs)
        again = await both.client.enqueue_job("the_task", _job_id="foobar")
        by_id = await Job("mine", both.client).result(timeout=1)
        return [job is not None for job in jobs], results, again, by_id

    are_new, results, again, by_id = await both.see(seen)
    assert (are_new, [each[4] for each in results], again, by_id) == (
        [True, False, True],
        ["foobar", "mine"],
        None,
        "mine",
    )


async def test_job_results(both: Both) -> None:
    """Its definition and status while it waits, its result, and an exception that is raised where it is asked for."""
    both.write("""
    async def the_task(ctx, *, fails=False):
        if fails:
            raise ValueError("no such thing")
        return 42

    class WorkerSettings:
        functions = [the_task]
        redis_settings = SERVER
    """)

    async def seen(fleet: Fleet) -> Any:
        job, failing = [await both.client.enqueue_job("the_task", fails=fails) for fails in (False, True)]
        assert job is not None
        assert failing is not None
        info, status = await job.info(), await job.status()
        assert info is not None
        before = (info.function, info.args, info.kwargs, info.job_try, status)
        results = await both.results(fleet, [job, failing])
        with pytest.raises(ValueError, match="no such thing"):
            await failing.result(timeout=1)
        return before, results, await job.status()

    before, results, after = await both.see(seen)
    assert before == ("the_task", (), {"fails": False}, None, JobStatus.queued)
    assert [each[3:5] for each in results] == [(True, 42), (False, "ValueError('no such thing')")]
    assert after == JobStatus.complete


async def test_retries_with_growing_pauses(both: Both) -> None:
    """Until one succeeds."""
    both.write("""
    async def download(ctx, succeeds_at):
        if ctx["job_try"] < succeeds_at:
            raise Retry(defer=ctx["job_try"] * 0.05)
        return ctx["job_try"]

    class WorkerSettings:
        functions = [download]
        redis_settings = SERVER
    """)

    async def seen(fleet: Fleet) -> Any:
        jobs = [await both.client.enqueue_job("download", succeeds_at) for succeeds_at in (1, 2, 4)]
        return await both.results(fleet, jobs)

    assert [each[3:6] for each in await both.see(seen)] == [(True, 1, 1), (True, 2, 2), (True, 4, 4)]


async def test_a_job_that_keeps_asking_for_retries_fails_after_max_tries(both: Both) -> None:
    """With arq's error. The text is another one, and Tandem does not count the try that there was not."""
    both.write("""
    async def download(ctx):
        await ctx["redis"].incr("tries")
        raise Retry(defer=0.01)

    class WorkerSettings:
        functions = [func(download, max_tries=3)]
        redis_settings = SERVER
    """)

    async def seen(fleet: Fleet) -> Any:
        job = await both.client.enqueue_job("download")
        ((_, _, _, success, _, _, _),) = await both.results(fleet, [job])
        assert job is not None
        with pytest.raises(JobExecutionFailed, match=r"tries|retries"):
            await job.result(timeout=1)
        return success, await both.client.get("tries")

    assert await both.see(seen) == (False, b"3")


async def test_a_job_that_expires_before_its_retry_fails(both: Both) -> None:
    """Where its producer set `_expires`."""
    both.write("""
    async def download(ctx):
        await ctx["redis"].incr("tries")
        raise Retry(defer=3)

    class WorkerSettings:
        functions = [download]
        redis_settings = SERVER
    """)

    async def seen(fleet: Fleet) -> Any:
        with fleet() as worker:
            await eventually(lambda: both.client.exists("arq:queue:health-check"), timeout=PATIENCE)
            job = await both.client.enqueue_job("download", _expires=2.5)
            assert job is not None
            success = (await result(job))[3]
            worker.send(signal.SIGTERM)
            await worker.ends()
        with pytest.raises(JobExecutionFailed, match="job expired"):
            await job.result(timeout=1)
        return success, await both.client.get("tries")

    assert await both.see(seen) == (False, b"1")


async def test_a_job_that_runs_is_aborted(both: Both) -> None:
    """Its producer gets a `CancelledError`."""
    both.write("""
    async def do_stuff(ctx):
        await ctx["redis"].set("began", 1)
        await asyncio.sleep(60)
        return "stuff done"

    class WorkerSettings:
        functions = [do_stuff]
        allow_abort_jobs = True
        redis_settings = SERVER
    """)

    async def seen(fleet: Fleet) -> Any:
        job = await both.client.enqueue_job("do_stuff")
        assert job is not None
        with fleet() as worker:
            await eventually(lambda: both.client.exists("began"), timeout=PATIENCE)
            aborted = await job.abort(timeout=PATIENCE, poll_delay=0.05)
            worker.send(signal.SIGTERM)
            await worker.ends()
        return aborted, (await result(job))[3:5]

    assert await both.see(seen) == (True, (False, "CancelledError()"))


async def test_a_job_that_a_shutdown_meets_has_one_result(both: Both) -> None:
    """Stock arq cancels it, and its second try ends. Tandem lets the first try end."""
    both.write("""
    async def the_task(ctx):
        await ctx["redis"].set("began", 1)
        await asyncio.sleep(1)
        return "slept"

    class WorkerSettings:
        functions = [the_task]
        redis_settings = SERVER
    """)

    async def seen(fleet: Fleet) -> Any:
        job = await both.client.enqueue_job("the_task")
        assert job is not None
        with fleet() as worker:
            await eventually(lambda: both.client.exists("began"), timeout=PATIENCE)
            worker.send(signal.SIGINT)
            await worker.ends()
        with fleet("--burst") as worker:
            await worker.ends()
        return (await result(job))[:5]

    assert await both.see(seen) == ("the_task", (), {}, True, "slept")


async def test_health_checks(both: Both) -> None:
    """`arq --check` ends with 0 while a worker runs, and with 1 when it has ended."""
    both.write("""
    async def the_task(ctx):
        pass

    class WorkerSettings:
        functions = [the_task]
        redis_settings = SERVER
    """)

    async def check(fleet: Fleet) -> int:
        with fleet("--check") as asked:
            return await asked.ends()

    async def seen(fleet: Fleet) -> Any:
        with fleet() as worker:
            record = await eventually(lambda: both.client.get("arq:queue:health-check"), timeout=PATIENCE)
            while_it_runs = await check(fleet)
            worker.send(signal.SIGTERM)
            await worker.ends()
        return record.partition(b"j_complete=")[2], while_it_runs, await check(fleet)

    assert await both.see(seen) == (b"0 j_failed=0 j_retried=0 j_ongoing=0 queued=0", 0, 1)


async def test_cron_jobs(both: Both) -> None:
    """One that is due at once, under arq's name for it, beside one that is due at the worker's start."""
    both.write("""
    async def run_regularly(ctx):
        await ctx["redis"].sadd("ran", "regularly")

    async def run_first(ctx):
        await ctx["redis"].sadd("ran", "first")

    async def startup(ctx):
        await ctx["redis"].delete("ran")

    class WorkerSettings:
        cron_jobs = [
            cron(run_regularly, hour=set(range(24)), second=set(range(60))),
            cron(run_first, month=1, day=1, hour=0, minute=0, run_at_startup=True),
        ]
        on_startup = startup
        redis_settings = SERVER
    """)

    async def seen(fleet: Fleet) -> Any:
        with fleet() as worker:
            ran = await eventually(
                lambda: both.client.smembers("ran"), timeout=PATIENCE, equals={b"regularly", b"first"}
            )
            await both.client.delete("ran")
            await both.client.enqueue_job("cron:run_first")
            await eventually(lambda: both.client.sismember("ran", "first"), timeout=PATIENCE)
            worker.send(signal.SIGTERM)
            await worker.ends()
        return ran

    assert await both.see(seen) == {b"regularly", b"first"}


async def test_synchronous_jobs_in_a_pool_of_processes(both: Both) -> None:
    """Which `on_startup` puts into ctx."""
    both.write("""
    import functools
    from concurrent import futures

    def sync_task(n):
        return n * 2

    async def the_task(ctx, n):
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(ctx["pool"], functools.partial(sync_task, n))

    async def startup(ctx):
        ctx["pool"] = futures.ProcessPoolExecutor(1)

    async def shutdown(ctx):
        ctx["pool"].shutdown()

    class WorkerSettings:
        functions = [the_task]
        on_startup = startup
        on_shutdown = shutdown
        redis_settings = SERVER
    """)

    async def seen(fleet: Fleet) -> Any:
        return await both.results(fleet, [await both.client.enqueue_job("the_task", 21)])

    ((_, args, _, success, value, _, _),) = await both.see(seen)
    assert (args, success, value) == ((21,), True, 42)


async def test_serializers_of_the_projects_own(both: Both, redis_url: str) -> None:
    """Producers give them to `create_pool`. A job that such a job enqueues has their format, too."""
    both.write("""
    import json, zlib

    def pack(data):
        return zlib.compress(json.dumps(data).encode())

    def unpack(raw):
        return json.loads(zlib.decompress(raw))

    async def the_task(ctx, x, *, y):
        await ctx["redis"].enqueue_job("child", x, _job_id="child")
        return [x, y]

    async def child(ctx, x):
        return x

    class WorkerSettings:
        functions = [the_task, child]
        job_serializer = pack
        job_deserializer = unpack
        redis_settings = SERVER
    """)

    def pack(data: Any) -> bytes:
        return zlib.compress(json.dumps(data).encode())

    def unpack(raw: bytes) -> Any:
        return json.loads(zlib.decompress(raw))

    client = await create_pool(redis_settings(redis_url), job_serializer=pack, job_deserializer=unpack)

    async def seen(fleet: Fleet) -> Any:
        job = await client.enqueue_job("the_task", 1, y={"a": None})
        return await both.results(fleet, [job, Job("child", client, _deserializer=unpack)])

    parent, child = await both.see(seen)
    await client.aclose()
    assert parent == ("the_task", [1], {"y": {"a": None}}, True, [1, {"a": None}], 1, "arq:queue")
    assert child[3:5] == (True, 1)


async def test_settings_and_functions_of_every_kind(both: Both) -> None:
    """A dict of settings: names to import, partials, `func()`; hooks; a queue of its own; no results by default."""
    both.write("""
    import functools

    async def add(ctx, x, y):
        ctx["said"].append("body")
        return [x + y, ctx["greeting"], list(ctx["said"])]

    async def keep(context, x):
        return x

    async def start(ctx):
        ctx["said"] = ["start"]

    async def end(ctx):
        ctx["said"].append("end")

    async def after(ctx):
        await ctx["redis"].rpush("after", ",".join(ctx["said"]))

    WorkerSettings = dict(
        functions=[
            func(functools.partial(add, y=3), name="add", keep_result=60, timeout=5),
            func("app.keep", keep_result_forever=True),
        ],
        queue_name="mail",
        on_job_start=start,
        on_job_end=end,
        after_job_end=after,
        ctx={"greeting": "hello"},
        keep_result=0,
        max_jobs=1,
        redis_settings=SERVER,
    )
    """)

    async def seen(fleet: Fleet) -> Any:
        names = (("add", 4), ("app.keep", 5))
        jobs = [await both.client.enqueue_job(name, value, _queue_name="mail") for name, value in names]
        with fleet() as worker:
            results = [await result(job) for job in jobs if job is not None]
            await eventually(lambda: both.client.llen("after"), timeout=PATIENCE, equals=2)
            worker.send(signal.SIGTERM)
            await worker.ends()
        kept = await both.client.pttl(f"arq:result:{jobs[1].job_id}")  # type: ignore[union-attr]
        after: Any = both.client.lrange("after", 0, -1)
        return results, sorted(await after), kept < 0 or kept > 10**12

    results, after, is_kept = await both.see(seen)
    assert [each[4] for each in results] == [[7, "hello", ["start", "body"]], 5]
    assert after == [b"start,body,end", b"start,end"]
    assert is_kept


async def test_a_burst_of_so_many_jobs(both: Both) -> None:
    """`burst` and `max_burst_jobs` of the class, and a log without results."""
    both.write("""
    async def the_task(ctx, n):
        return "a result of its own"

    class WorkerSettings:
        functions = [the_task]
        burst = True
        max_burst_jobs = 2
        log_results = False
        redis_settings = SERVER
    """)

    async def seen(fleet: Fleet) -> Any:
        for number in range(5):
            await both.client.enqueue_job("the_task", number)
        with fleet() as worker:
            code = await worker.ends()
            output = worker.output
        return code, await both.client.zcard("arq:queue"), "a result of its own" in output, output.count("←")

    assert await both.see(seen) == (0, 3, False, 2)


async def test_a_refused_setting_ends_the_command_before_anything_is_done(both: Both) -> None:
    """With a line for each on standard error, and code 2."""
    both.write("""
    async def the_task(ctx, **anything):
        pass

    class WorkerSettings:
        functions = [the_task]
        redis_pool = object()
        max_jobs = 0
    """)
    with both.ours() as worker:
        assert await worker.ends() == 2
        assert worker.output.splitlines() == [
            "app.WorkerSettings: redis_pool: Tandem opens connections of its own: give redis_settings, or set "
            "REDIS_URL",
            "app.WorkerSettings: functions[0]: app.the_task cannot be a task: **anything cannot be validated: name the "
            "parameters",
            "app.WorkerSettings: max_jobs: WORKER_CONCURRENCY=0 is not a whole number, 1 or more. Example: "
            "WORKER_CONCURRENCY=8",
        ]

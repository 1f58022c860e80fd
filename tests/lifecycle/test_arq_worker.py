"""arq's worker around Tandem's engine: bursts, its counts, `ctx` of `on_startup`, and a program that embeds it."""

import pytest

from tests.lifecycle.conftest import Project
from tests.waiting import at_once
from worker import Broker, Job, JobFailed, JobStatus, task

pytestmark = pytest.mark.usefixtures("broker")

EMBEDDED = """
import asyncio, os, signal
import worker
from arq.worker import FailedJobs, create_worker

async def main():
    {}

asyncio.run(main())
"""


@task(name="send")
async def send(to: str) -> str:
    raise NotImplementedError("the project's own runs")


class TestBurst:
    async def test_it_ends_when_every_queue_is_empty(self, project: Project) -> None:
        """Also those that arq itself does not look at."""
        jobs = [await send.using(queue="low").enqueue(str(number)) for number in range(8)]
        with project.arq("worker.Settings", "--burst", WORKER_QUEUES="high,low", WORKER_CONCURRENCY="1") as arq:
            assert await arq.ends() == 0
        assert {await job.status() for job in jobs} == {JobStatus.complete}

    async def test_it_runs_the_schedules_of_its_startup(self, project: Project, broker: Broker) -> None:
        """Once in each burst, although the queue is empty at first."""
        project.write("tasks/registry.py", "from arq import cron\nfrom tasks.tick import tick\n"
                      "TASKS = (cron(tick, hour=1, run_at_startup=True),)")  # fmt: skip
        project.write("tasks/tick.py", "async def tick(ctx):\n    await ctx['redis'].incr('ticks')\n")
        for _ in range(2):
            with project.arq("worker.Settings", "--burst") as arq:
                assert await arq.ends() == 0
        assert await broker.redis.get("ticks") == b"2"

    async def test_a_job_of_an_unknown_task_fails_at_once(self, project: Project, broker: Broker) -> None:
        """And does not keep the burst going."""
        job_id = "unknown"
        await task(name="missing")(send.fn).using(job_id=job_id).enqueue("a")
        with project.arq("worker.Settings", "--burst") as arq:
            assert await arq.ends() == 0
        with pytest.raises(JobFailed, match="no task 'missing'"):
            await at_once(Job(job_id, broker=broker).result())


class TestContext:
    async def test_what_on_startup_puts_into_ctx_session_stays(self, project: Project) -> None:
        """arq's first example. The log says where the database's session is."""
        project.write(
            "settings.py",
            """
            import worker

            class Settings(worker.Settings):
                async def on_startup(ctx):
                    ctx["session"] = "an HTTP client"
            """,
        )
        project.write("tasks/registry.py", "from arq import func\nfrom tasks.mail import send\nTASKS = (func(send),)")
        project.write("tasks/mail.py", "async def send(ctx, to):\n    return ctx['session']\n")
        job = await send.enqueue("a")
        with project.arq("settings.Settings", "--burst") as arq:
            assert await arq.ends() == 0
            assert 'the database\'s session is ctx["db_session"]' in arq.output
        assert await at_once(job.result()) == "an HTTP client"


class TestEmbedded:
    async def test_without_handle_signals_the_programs_own_handlers_stay(self, project: Project) -> None:
        """The program is told of SIGTERM, and ends the worker itself."""
        project.write(
            "embedded.py",
            EMBEDDED.format(
                """stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    arq = create_worker(worker.Settings, handle_signals=False)
    running = asyncio.create_task(arq.async_run())
    await asyncio.sleep(2)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(stop.wait(), 5)
    await arq.close()
    print("closed", running.cancelled() or running.cancelling())"""
            ),
        )
        with project.command("embedded") as program:
            assert await program.ends() == 0, program.output
            assert "closed" in program.output

    async def test_run_check_counts_its_jobs_and_raises_for_failed_ones(self, project: Project) -> None:
        """As often as it is called on one worker."""
        project.write("tasks/mail.py", "from worker import task\n\n@task\nasync def send(to: str) -> str:\n"
                      "    return to[0]\n")  # fmt: skip
        await send.enqueue("a")
        await send.enqueue("b")
        project.write(
            "embedded.py",
            EMBEDDED.format(
                """arq = create_worker(worker.Settings, burst=True)
    print("first:", await arq.run_check())
    await arq.pool.enqueue_job("send", "c")
    await arq.pool.enqueue_job("send", "")
    try:
        await arq.run_check()
    except FailedJobs as error:
        print("failed:", error.count, "done:", arq.jobs_complete)
    await arq.close()"""
            ),
        )
        with project.command("embedded") as program:
            assert await program.ends() == 0, program.output
            assert "first: 2" in program.output
            assert "failed: 1 done: 3" in program.output

    @pytest.mark.parametrize(
        ("arguments", "line"),
        [
            ("max_jobs=5", "max_jobs given to arq's Worker: set WORKER_CONCURRENCY"),
            ("keep_result=5", "keep_result given to arq's Worker: set WORKER_KEEP_RESULT"),
            ("on_job_start=main", "on_job_start given to arq's Worker: set it in the Settings class"),
            ("functions=[main]", "functions given to arq's Worker: list them in the registry's TASKS"),
        ],
    )
    async def test_an_argument_of_arqs_worker_without_effect_is_refused(
        self, project: Project, arguments: str, line: str
    ) -> None:
        """In one line, with what takes its place. It would be ignored."""
        project.write(
            "embedded.py", EMBEDDED.format(f"await create_worker(worker.Settings, burst=True, {arguments}).run_check()")
        )
        with project.command("embedded") as program:
            assert await program.ends() == 2
            assert line in program.output
            assert "Traceback" not in program.output

    async def test_arguments_of_arqs_worker_and_of_run_check_that_the_engine_follows(self, project: Project) -> None:
        """`max_burst_jobs`, also for the next run of the same worker, and `retry_jobs`."""
        project.write("tasks/mail.py", "from worker import Retry, task\n\n@task\nasync def send(to: str) -> str:\n"
                      "    if to == 'again':\n        raise Retry\n    return to\n")  # fmt: skip
        for to in ("a", "b", "c", "d"):
            await send.enqueue(to)
        project.write(
            "embedded.py",
            EMBEDDED.format(
                """arq = create_worker(worker.Settings, burst=True, max_burst_jobs=1)
    print("first:", await arq.run_check())
    print("second:", await arq.run_check())
    print("third:", await arq.run_check(max_burst_jobs=2))
    await arq.pool.enqueue_job("send", "again")
    try:
        await arq.run_check(max_burst_jobs=-1, retry_jobs=False)
    except FailedJobs as error:
        print("failed:", error.count, "retried:", arq.jobs_retried)
    await arq.close()"""
            ),
        )
        with project.command("embedded") as program:
            assert await program.ends() == 0, program.output
            for expected in ("first: 1", "second: 2", "third: 4", "failed: 1 retried: 0"):
                assert expected in program.output


class TestRefusedSettings:
    async def test_a_setting_that_is_refused_ends_the_command_with_one_line(self, project: Project) -> None:
        """With code 2 and without a traceback."""
        project.write("settings.py", "import worker\n\nclass Settings(worker.Settings):\n    max_jobs = 5\n"
                      "    timezone = None\n")  # fmt: skip
        with project.arq("settings.Settings", "--burst") as arq:
            assert await arq.ends() == 2
            assert arq.output.splitlines() == [
                "max_jobs in Settings: set WORKER_CONCURRENCY, or build(Config.load(concurrency=...))",
                "timezone in Settings: give it to @cron",
            ]

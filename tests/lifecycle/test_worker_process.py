"""``arq worker.Settings`` as a process: how it starts, what it says when it cannot, and how it ends."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from sqlalchemy import make_url

import worker
from tests.commands import REPOSITORY, bare_environment
from tests.conftest import StartRedis
from tests.lifecycle.conftest import Project
from tests.sentinel import Sentinel
from tests.servers import Observer
from tests.stopwatch import Stopwatch
from tests.waiting import at_once, eventually
from worker import Job, task


@task(name="send")
async def send(to: str) -> str:
    raise NotImplementedError("the project's own runs")


@pytest.mark.usefixtures("broker")
class TestStart:
    async def test_burst_runs_the_queued_jobs_and_exits_with_0(self, project: Project) -> None:
        """Exit code 0, and the result is there."""
        job = await send.enqueue("a")
        with project.arq("worker.Settings", "--burst") as arq:
            assert await arq.ends() == 0
            assert "Traceback" not in arq.output
        assert await at_once(job.result()) == "sent to a"

    async def test_check_reports_whether_a_worker_is_alive(self, project: Project) -> None:
        """`--check` exits with 1 without a worker, with 0 beside one, and with 1 again when it has ended."""

        async def checked() -> int:
            with project.arq("worker.Settings", "--check") as check:
                return await check.ends()

        assert await checked() == 1
        with project.arq() as arq:
            await arq.says("Starting worker")
            await eventually(checked, timeout=20, equals=0)
            arq.send(signal.SIGTERM)
            assert await arq.ends() == 0
        assert await checked() == 1

    async def test_a_worker_finds_redis_through_a_sentinel(
        self, project: Project, own_redis: StartRedis, tmp_path: Path
    ) -> None:
        """arq, which hosts the engine, finds the primary too."""
        with contextlib.closing(Sentinel(own_redis, tmp_path)) as sentinel:
            await eventually(sentinel.primary_port)
            broker = worker.Broker(sentinel.url, default=True)
            job = await send.enqueue("a")
            with project.arq("worker.Settings", "--burst", REDIS_URL=sentinel.url) as arq:
                assert await arq.ends() == 0, arq.output
            assert await at_once(job.result()) == "sent to a"
            await broker.close()

    async def test_the_working_directorys_tasks_win_over_an_installed_project(self, project: Project) -> None:
        """The installed project has a package `tasks`, too."""
        other = Project(project.folder / "other", project.settings)
        other.write("tasks/mail.py", MAIL.format("the other"))
        job = await send.enqueue("a")
        path = os.pathsep.join([str(project.folder), str(REPOSITORY)])
        with other.arq("worker.Settings", "--burst", PYTHONPATH=path) as arq:
            assert await arq.ends() == 0
        assert await at_once(job.result()) == "the other"

    async def test_an_installed_project_runs_from_any_folder(self, project: Project, tmp_path: Path) -> None:
        """So it does with the command `arq`."""
        installed, anywhere = tmp_path / "site-packages", tmp_path / "anywhere"
        anywhere.mkdir()
        shutil.copytree(project.folder / "tasks", installed / "tasks")
        for package in ("db", "worker"):
            shutil.copytree(REPOSITORY / package, installed / package, ignore=shutil.ignore_patterns("__pycache__"))
        job = await send.enqueue("a")
        environment = bare_environment(**project.settings) | {"PYTHONPATH": str(installed)}
        command = [str(Path(sys.executable).parent / "arq"), "worker.Settings", "--burst"]
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=anywhere, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert await at_once(job.result()) == "sent to a"

    async def test_a_projects_own_settings_class_runs_its_tasks_and_hooks(
        self, project: Project, broker: worker.Broker
    ) -> None:
        """A subclass of `worker.Settings` and one made by `build` run the tasks and their own hooks."""
        project.write(
            "settings.py",
            """
            import worker
            from worker.config import Config
            from worker.settings import build

            async def note(ctx, event):
                await ctx["redis"].rpush("events", event)

            class Mine(worker.Settings):
                ctx = {"mine": "ctx"}

                async def on_startup(ctx):
                    await note(ctx, f"startup {ctx['mine']}")

                async def on_shutdown(ctx):
                    await note(ctx, "shutdown")

                async def on_job_start(ctx):
                    await note(ctx, f"job start {ctx['job_id']}")

                async def on_job_end(ctx):
                    await note(ctx, f"job end {ctx['session'] is not None}")

                async def after_job_end(ctx):
                    await note(ctx, "after job end")
                    raise ValueError("nobody minds")

            Slow = build(Config.load(queue="slow"))
            """,
        )
        quick = await send.using(job_id="q").enqueue("a")
        slow = await send.using(queue="slow").enqueue("b")
        with project.arq("settings.Mine", "--burst") as arq:
            assert await arq.ends() == 0
            assert "nobody minds" in arq.output
        assert await at_once(quick.result()) == "sent to a"
        events = await broker.redis.lrange("events", 0, -1)  # type: ignore[misc]  # redis-py's types are sync's too
        assert events == [b"startup ctx", b"job start q", b"job end True", b"after job end", b"shutdown"]
        assert await slow.status() is worker.JobStatus.queued
        with project.arq("settings.Slow", "--burst") as arq:
            assert await arq.ends() == 0
        assert await at_once(slow.result()) == "sent to b"

    async def test_a_worker_waits_for_a_redis_that_starts_later(self, project: Project, own_redis: StartRedis) -> None:
        """arq connects to Redis before any of Tandem's code runs. That connect waits, too."""
        project.write("settings.py", "from worker.settings import build\n\nMine = build()\n")
        server = own_redis()
        server.kill()
        with project.arq("settings.Mine", REDIS_URL=server.url) as arq:
            await arq.says("Starting worker")
            await asyncio.to_thread(server.restart)
            await arq.says("redis_version=")
            arq.send(signal.SIGTERM)
            assert await arq.ends() == 0
            assert "Traceback" not in arq.output

    async def test_a_password_with_reserved_characters_opens_redis(
        self, project: Project, own_redis: StartRedis
    ) -> None:
        """The password is percent-encoded in the URL, and works for the worker and for arq."""
        server = own_redis(requirepass="p@ss/w:r#d?")
        address = server.url.partition("//")[2].rpartition("@")[2]
        url = f"redis://:p%40ss%2Fw%3Ar%23d%3F@{address}"
        broker = worker.Broker(url, default=True)
        job = await send.enqueue("a")
        with project.arq("worker.Settings", "--burst", REDIS_URL=url) as arq:
            assert await arq.ends() == 0
        assert await at_once(job.result()) == "sent to a"
        await broker.close()
        worker.set_default_broker(None)


MAIL = textwrap.dedent(
    """
    from worker import task

    @task
    async def send(to: str) -> str:
        return {!r}
    """
)


class TestCannotStart:
    @pytest.mark.parametrize(
        ("settings", "lines"),
        [
            ({"DATABASE_URL": ""}, ["DATABASE_URL is not set. Example: DATABASE_URL=postgresql+asyncpg://"]),
            ({"REDIS_URL": ""}, ["REDIS_URL is not set. Example: REDIS_URL=redis://"]),
            ({"DATABASE_URL": "", "REDIS_URL": ""}, ["DATABASE_URL is not set", "REDIS_URL is not set"]),
            ({"DATABASE_URL": "postgres//app:secret@x"}, ["DATABASE_URL: "]),
            ({"REDIS_URL": "localhost:6379"}, ["REDIS_URL: not a Redis URL"]),
            ({"WORKER_CONCURRENCY": "many"}, ["WORKER_CONCURRENCY='many' is not a whole number, 1 or more. Example:"]),
            (
                {"WORKER_GRACE": "-1", "WORKER_MAX_TRIES": "0"},
                ["WORKER_MAX_TRIES='0' is not a whole number", "WORKER_GRACE='-1' is not a number of seconds"],
            ),
            ({"WORKER_REGISTRY": "nowhere.registry"}, ["there is no module nowhere"]),
        ],
        ids=lambda value: "+".join(value) if isinstance(value, dict) else "",
    )
    async def test_each_wrong_setting_is_one_line_with_an_example(
        self, project: Project, settings: dict[str, str], lines: list[str]
    ) -> None:
        """The line names the variable. The exit code is 2, and there is no traceback."""
        with project.arq(**settings) as arq:
            assert await arq.ends() == 2
            said = arq.output.strip().splitlines()
        assert len(said) == len(lines)
        for line, expected in zip(said, lines, strict=True):
            assert expected in line
        assert "secret" not in "\n".join(said)

    async def test_each_broken_task_is_one_line_with_its_place(self, project: Project) -> None:
        """The exit code is 2."""
        project.write("tasks/mail.py", "import nothing_of_the_kind\n")
        project.write("tasks/registry.py", 'TASKS = ("tasks.mail.send", "tasks.other.go")\n')
        with project.arq() as arq:
            assert await arq.ends() == 2
            assert "tasks/mail.py:1" in arq.output
            assert "tasks.other" in arq.output
            assert "Traceback" not in arq.output

    @pytest.mark.parametrize(
        ("settings", "expected"),
        [
            ({"REDIS_URL": "redis://:secret@127.0.0.1:1/0"}, "REDIS_URL: no answer within 0.5 s ("),
            ({"DATABASE_URL": "postgresql://app:secret@127.0.0.1:1/app"}, "DATABASE_URL: no answer within 0.5 s ("),
        ],
        ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
    )
    async def test_a_server_that_stays_away_ends_the_worker_after_connect_wait(
        self, project: Project, settings: dict[str, str], expected: str
    ) -> None:
        """One line names the variable. The exit code is 1, and there is no traceback."""
        watch = Stopwatch()
        with project.arq(**settings, WORKER_CONNECT_WAIT="0.5") as arq:
            assert await arq.ends() == 1
            assert watch.seconds >= 0.5
            assert arq.output.strip().splitlines()[-1].startswith(expected)
            assert "Traceback" not in arq.output
            assert "secret" not in arq.output

    async def test_settings_made_by_build_report_an_absent_server_in_one_line(
        self, project: Project, own_redis: StartRedis
    ) -> None:
        """With `build` arq itself starts. The line is the same, and there is no traceback either."""
        project.write("settings.py", "from worker.settings import build\n\nMine = build()\n")
        locked = own_redis(requirepass="right").url.rpartition("@")[2].removeprefix("redis://")
        for url, wait, expected in (
            ("redis://:secret@127.0.0.1:1/0", "0.5", "REDIS_URL: no answer within 0.5 s ("),
            (f"redis://:secret@{locked}", "60", "REDIS_URL: the server refuses: "),
        ):
            with project.arq("settings.Mine", REDIS_URL=url, WORKER_CONNECT_WAIT=wait) as arq:
                assert await arq.ends() == 1
                assert arq.output.strip().splitlines()[-1].startswith(expected)
                assert "Traceback" not in arq.output
                assert "secret" not in arq.output

    async def test_a_wrong_name_or_password_ends_the_worker_at_once(
        self, project: Project, database_url: str, own_redis: StartRedis
    ) -> None:
        """Waiting would not change it."""
        nowhere = make_url(database_url).set(database="nowhere").render_as_string(hide_password=False)
        locked = own_redis(requirepass="right")
        wrong = f"redis://:wrong@{locked.url.rpartition('@')[2].removeprefix('redis://')}"
        for settings, expected in (
            ({"DATABASE_URL": nowhere}, 'DATABASE_URL: the server refuses: database "nowhere" does not exist'),
            ({"REDIS_URL": wrong}, "REDIS_URL: the server refuses: "),
        ):
            with project.arq(**settings, WORKER_CONNECT_WAIT="60") as arq:
                assert await arq.ends() == 1
                assert arq.output.strip().splitlines()[-1].startswith(expected)
                assert "Traceback" not in arq.output

    async def test_a_pool_smaller_than_the_concurrency_is_refused(self, project: Project) -> None:
        """Every running job needs a connection."""
        project.write(
            "tasks/mail.py",
            """
            import db
            from worker import task

            @task
            async def send(session: db.AsyncSession, to: str) -> None: ...
            """,
        )
        with project.arq(WORKER_CONCURRENCY="8", WORKER_POOL_SIZE="4") as arq:
            assert await arq.ends() == 1
            assert "8 jobs (WORKER_CONCURRENCY) and the health check share 4 database connections" in arq.output
            assert "Traceback" not in arq.output

    async def test_a_misspelt_setting_is_a_warning(self, project: Project) -> None:
        """The worker starts all the same."""
        with project.arq("worker.Settings", "--burst", WORKER_CONCURENCY="3") as arq:
            assert await arq.ends() == 0
            assert "WORKER_CONCURENCY is not a setting: did you mean WORKER_CONCURRENCY?" in arq.output


@pytest.mark.usefixtures("broker")
class TestEnd:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    async def test_a_signal_drains_the_worker_and_closes_its_connections(
        self, project: Project, postgres: Observer, number: signal.Signals
    ) -> None:
        """The running job finishes, the queued one stays in the queue, and the exit code is 0."""
        project.write(
            "tasks/mail.py",
            """
            import asyncio, db
            from sqlalchemy import text
            from worker import task

            @task
            async def send(session: db.AsyncSession, to: str) -> str:
                await session.execute(text("SELECT 1"))
                await asyncio.sleep(1)
                return f"sent to {to}"
            """,
        )
        running = await send.enqueue("a")
        waiting = await send.using(delay=600).enqueue("b")
        with project.arq() as arq:
            await eventually(running.status, timeout=20, equals=worker.JobStatus.in_progress)
            await eventually(postgres.backends, timeout=5)
            arq.send(number)
            assert await arq.ends() == 0
            assert "Traceback" not in arq.output
        assert await at_once(running.result()) == "sent to a"
        assert await waiting.status() is worker.JobStatus.deferred
        await eventually(postgres.backends, equals=0)
        assert await postgres.idle_in_transaction() == 0

    async def test_jobs_that_outlast_the_grace_period_are_put_back(self, project: Project, postgres: Observer) -> None:
        """The running job is rolled back, and runs again in the next worker. That is no try."""
        await postgres.execute("CREATE TABLE sent (attempt int)")
        project.write(
            "tasks/mail.py",
            """
            import asyncio, db, os
            from sqlalchemy import text
            from worker import JobContext, task

            @task(max_tries=1)
            async def send(session: db.AsyncSession, job: JobContext, to: str) -> str:
                await session.execute(text("INSERT INTO sent VALUES (:attempt)"), {"attempt": job.attempt})
                await asyncio.sleep(float(os.environ["WAIT"]))
                return f"attempt {job.attempt}"
            """,
        )
        job = await send.enqueue("a")
        with project.arq(WORKER_GRACE="0.2", WAIT="60") as arq:
            await eventually(job.status, timeout=20, equals=worker.JobStatus.in_progress)
            await eventually(postgres.idle_in_transaction, timeout=5, equals=1)
            arq.send(signal.SIGTERM)
            assert await arq.ends() == 0
        assert await job.status() is worker.JobStatus.queued
        assert await postgres.fetchval("SELECT count(*) FROM sent") == 0
        with project.arq("worker.Settings", "--burst", WAIT="0") as arq:
            assert await arq.ends() == 0
        assert await at_once(Job[str](job.job_id).result()) == "attempt 1"
        assert await postgres.fetchval("SELECT count(*) FROM sent") == 1

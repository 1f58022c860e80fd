import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import bare_environment
from tests.worker.reports import report
from worker import Broker
from worker.broker.metrics import MetricsStore
from worker.broker.records import now_ms

MAIL = """\
from typing import Annotated

from sqlalchemy.ext.asyncio import AsyncSession

from worker import JobContext, Resource, cron, task


@task(queue="mail")
async def send(session: AsyncSession, order: int, copies: list[str] | None = None) -> None: ...


@cron("30 2 * * *", timezone="Europe/Berlin")
async def clean_up(job: JobContext, client: Annotated[object, Resource("http")]) -> None: ...
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of two tasks."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/__init__.py").touch()
    (tmp_path / "tasks/mail.py").write_text(MAIL)
    (tmp_path / "tasks/registry.py").write_text('TASKS = ("tasks.mail.send", "tasks.mail.clean_up")\n')
    return tmp_path


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`python -m worker` with nothing but this environment."""
    return subprocess.run(
        [sys.executable, "-m", "worker", *arguments],
        cwd=cwd,
        env=bare_environment(**environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class TestCheck:
    def test_check_shows_parameters_queue_and_schedule_of_each_task(self, project: Path) -> None:
        """`check` shows each task with its name, place, parameters, queue and schedule; it needs no server."""
        done = run("check", cwd=project, WORKER_QUEUES="arq:queue,mail")
        assert (done.returncode, done.stderr) == (0, "")
        head, send, clean_up = done.stdout.split("\n\n")
        assert head == "tasks.registry (tasks/registry.py): 2 tasks"
        assert send.splitlines() == [
            "send  tasks/mail.py:8",
            "  payload  (order: int, copies: list[str] | None = None)",
            "  queue    mail",
            "  injected session: AsyncSession",
        ]
        *lines, schedule = clean_up.splitlines()
        assert lines == [
            "clean_up  tasks/mail.py:12",
            "  payload  ()",
            "  queue    arq:queue",
            "  injected job: JobContext, client: resource http",
        ]
        assert schedule.startswith("  schedule At 02:30 every day (Europe/Berlin), next at 20")
        assert schedule.endswith(":30:00 UTC")

    def test_check_applies_the_settings_to_the_tasks(self, project: Path) -> None:
        """A task without a queue of its own is shown with the queue of the settings."""
        done = run("check", cwd=project, WORKER_QUEUE="reports")
        assert "  queue    reports\n" in done.stdout

    def test_check_warns_of_tasks_whose_queue_this_worker_does_not_serve(self, project: Path) -> None:
        """It names the tasks of other queues; without Redis it cannot know whether another worker serves them."""
        for redis in ({}, {"REDIS_URL": "redis://127.0.0.1:1"}):
            done = run("check", cwd=project, **redis)
            assert done.returncode == 0
            assert done.stderr == (
                "the jobs of send go to the queue mail, which this worker does not serve (another one may): add it to "
                "WORKER_QUEUES, which is arq:queue here\n"
            )

    async def test_check_asks_redis_whether_another_worker_serves_the_queue(
        self, project: Path, broker: Broker
    ) -> None:
        """A task whose queue another worker serves is no warning."""
        alone = await asyncio.to_thread(run, "check", cwd=project, REDIS_URL=broker.url)
        assert "the jobs of send go to the queue mail, which no worker serves: add it to WORKER_QUEUES" in alone.stderr
        await report(broker, "another", ["mail"])
        served = await asyncio.to_thread(run, "check", cwd=project, REDIS_URL=broker.url)
        assert (served.returncode, served.stderr) == (0, "")

    def test_check_shows_each_schedule_of_arqs_crons(self, project: Path) -> None:
        """With its zone, its job id, and whether each worker runs it."""
        (project / "tasks/old.py").write_text("async def f(ctx): ...\n")
        (project / "tasks/registry.py").write_text(
            "from arq import cron\nfrom tasks.old import f\n"
            "TASKS = (cron(f, hour=1), cron(f, hour=2, job_id='one'), cron(f, hour=3, unique=False))\n"
        )
        done = run("check", cwd=project, TZ="Asia/Tokyo")
        assert (done.returncode, done.stderr) == (0, "")
        schedules = done.stdout.partition("schedule ")[2].split(";")
        assert all("(Asia/Tokyo)" in schedule for schedule in schedules)
        first, second, third = (" ".join(schedule.split()) for schedule in schedules)
        assert first.endswith("UTC")
        assert second.endswith("not while job one waits or runs")
        assert third.endswith("a job for each worker")

    def test_check_reports_every_problem_of_the_registry_and_exits_with_1(self, project: Path) -> None:
        """Every problem is a line on stderr, no task is shown, and the exit code is 1."""
        (project / "tasks/registry.py").write_text('TASKS = ("tasks.mail.sned", "tasks.mail.send", "tasks.sms.send")\n')
        done = run("check", cwd=project)
        assert (done.returncode, done.stdout) == (1, "")
        head, *problems = done.stderr.splitlines()
        assert head == "tasks.registry: 2 problems"
        assert problems[0] == "- tasks/mail.py has no 'sned'. Did you mean send?"
        assert problems[1].startswith("- there is no module tasks.sms. Python looked in ")

    def test_the_registry_option_wins_over_the_environment(self, project: Path) -> None:
        """--registry wins over WORKER_REGISTRY."""
        (project / "other.py").write_text('TASKS = ("tasks.mail.send",)\n')
        done = run("check", "--registry", "other", cwd=project, WORKER_REGISTRY="tasks.registry")
        assert done.stdout.startswith("other (other.py): 1 task\n")

    @pytest.mark.parametrize(
        ("arguments", "environment", "variable"),
        [
            ([], {"WORKER_CONCURRENCY": "many"}, "WORKER_CONCURRENCY"),
            ([], {"REDIS_URL": "localhost:6379"}, "REDIS_URL"),
            ([], {"WORKER_REGISTRY": "tasks/registry.py"}, "WORKER_REGISTRY"),
            (["--registry", "tasks/registry.py"], {}, "WORKER_REGISTRY"),
        ],
    )
    def test_check_reports_a_wrong_setting_in_one_line_and_exits_with_2(
        self, project: Path, arguments: list[str], environment: dict[str, str], variable: str
    ) -> None:
        """A wrong setting is one line on stderr that names it, and the exit code is 2."""
        done = run("check", *arguments, cwd=project, **environment)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(variable)

    def test_check_warns_of_a_misspelled_setting(self, project: Path) -> None:
        """A variable that looks like a misspelled setting is a warning."""
        done = run("check", cwd=project, WORKER_CONCURENCY="8", WORKER_QUEUES="arq:queue,mail")
        assert done.returncode == 0
        assert done.stderr == "WORKER_CONCURENCY is not a setting: did you mean WORKER_CONCURRENCY?\n"


class TestHelp:
    def test_help_lists_the_commands_without_a_project(self, tmp_path: Path) -> None:
        """--help lists the commands, also where there is no project."""
        done = run("--help", cwd=tmp_path)
        assert done.returncode == 0
        assert "python -m worker [OPTIONS] COMMAND" in done.stdout
        assert all(command in done.stdout for command in ("check", "run", "health", "env"))

    def test_without_a_command_the_help_is_shown_and_the_exit_code_is_2(self, tmp_path: Path) -> None:
        """Without a command the help is shown, as a mistake."""
        done = run(cwd=tmp_path)
        assert done.returncode == 2
        assert "check" in done.stdout + done.stderr

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["chekc"], "chekc"),
            (["run", "--proceses", "2"], "--proceses"),
            (["run", "--processes", "0"], "--processes"),
            (["run", "--watch", "nowhere"], "nowhere"),
        ],
    )
    def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(
        self, tmp_path: Path, arguments: list[str], named: str
    ) -> None:
        """A mistake in the command line is one line on stderr that names it, and the exit code is 2."""
        done = run(*arguments, cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert named in line


class TestHealth:
    async def test_health_shows_the_workers_of_the_queues_and_skips_invalid_records(
        self, tmp_path: Path, redis_url: str
    ) -> None:
        """`health` shows the healthy workers that serve one of the queues; an invalid report is skipped."""
        broker = Broker(redis_url)
        running = [(str(number), "send", "low", 1, now_ms()) for number in range(4)]
        counts = {"done": 1234, "failed": 5, "retried": 6, "loop_lag": 0.0021, "last_heartbeat": 0.4}
        await report(broker, "host-1", ["high", "low"], running, **counts)
        await report(broker, "host-2", ["high"])
        await report(broker, "unwell", ["high"], state="unwell", last_healthy=4.0)
        await report(broker, "starting", ["high"], state="starting", last_healthy=None)
        await MetricsStore(broker.connections).add_record(["high"], "other", b"something else")
        await broker.redis.zadd("high", {"a": 1, "b": 2})
        await broker.close()
        done = run("health", "--queues", "high,low", cwd=tmp_path, REDIS_URL=redis_url)
        assert (done.returncode, done.stderr) == (0, "")
        head, first, second = done.stdout.splitlines()
        assert head.split("  ")[0] == "worker"
        assert " ".join(first.split()).startswith("host-1 high: 2, low: 0 4 1,234 5 6 2.1 ms ")
        assert first.rstrip().endswith(" s ago")
        assert second.split()[0] == "host-2"

        done = run("health", "--json", cwd=tmp_path, REDIS_URL=redis_url, WORKER_QUEUE="low")
        (worker,) = json.loads(done.stdout)["workers"].values()
        assert (worker["queued"], worker["done"], worker["state"]) == ({"high": 2, "low": 0}, 1234, "working")

    async def test_health_escapes_control_characters_and_shows_markup_as_text(
        self, tmp_path: Path, redis_url: str
    ) -> None:
        """Markup in a report is shown as text, and control characters as escapes."""
        broker = Broker(redis_url)
        await report(broker, "[red]w\x9b", ["arq:queue", "a\x1b[2J"])
        await broker.close()
        done = run("health", cwd=tmp_path, REDIS_URL=redis_url)
        _head, line = done.stdout.splitlines()
        assert line.startswith("[red]w\\x9b  arq:queue: 0, a\\x1b[2J: 0 ")

    def test_health_without_a_worker_is_one_line_and_exit_code_1(self, tmp_path: Path, redis_url: str) -> None:
        """Without a worker it prints one line and exits with 1."""
        done = run("health", cwd=tmp_path, REDIS_URL=redis_url)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == (
            "no healthy worker serves arq:queue: start one with 'tandem run', or see with 'tandem workers' why it is "
            "unwell\n"
        )

    @pytest.mark.parametrize(
        ("url", "code", "line"),
        [
            ({"REDIS_URL": "redis://127.0.0.1:1/0"}, 1, "REDIS_URL: no answer ("),
            ({}, 2, "REDIS_URL is not set. Example: REDIS_URL="),
        ],
        ids=["unreachable", "unset"],
    )
    def test_health_without_redis_is_one_line(self, tmp_path: Path, url: dict[str, str], code: int, line: str) -> None:
        """Without Redis it prints one line that says so."""
        done = run("health", cwd=tmp_path, **url)
        assert (done.returncode, done.stdout) == (code, "")
        (said,) = done.stderr.splitlines()
        assert said.startswith(line)

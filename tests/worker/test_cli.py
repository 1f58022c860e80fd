import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

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
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(REPOSITORY), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class TestCheck:
    def test_tasks(self, project: Path) -> None:
        """`check` shows each task with its name, place, parameters, queue and schedule; it needs no server."""
        done = run("check", cwd=project)
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

    def test_settings(self, project: Path) -> None:
        """It shows what the settings make of the tasks."""
        done = run("check", cwd=project, WORKER_QUEUE="reports")
        assert "  queue    reports\n" in done.stdout

    def test_problems(self, project: Path) -> None:
        """Every problem is a line on stderr, no task is shown, and the exit code is 1."""
        (project / "tasks/registry.py").write_text('TASKS = ("tasks.mail.sned", "tasks.mail.send", "tasks.sms.send")\n')
        done = run("check", cwd=project)
        assert (done.returncode, done.stdout) == (1, "")
        head, *problems = done.stderr.splitlines()
        assert head == "tasks.registry: 2 problems"
        assert problems[0] == "- tasks/mail.py has no 'sned'. Did you mean send?"
        assert problems[1].startswith("- there is no module tasks.sms. Python looked in ")

    def test_other_registry(self, project: Path) -> None:
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
    def test_wrong_setting(
        self, project: Path, arguments: list[str], environment: dict[str, str], variable: str
    ) -> None:
        """A wrong setting is one line on stderr that names it, and the exit code is 2."""
        done = run("check", *arguments, cwd=project, **environment)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(variable)

    def test_typo(self, project: Path) -> None:
        """A variable that looks like a misspelled setting is a warning."""
        done = run("check", cwd=project, WORKER_CONCURENCY="8")
        assert done.returncode == 0
        assert done.stderr == "WORKER_CONCURENCY is not a setting: did you mean WORKER_CONCURRENCY?\n"


class TestHelp:
    def test_help(self, tmp_path: Path) -> None:
        """--help lists the commands, also where there is no project."""
        done = run("--help", cwd=tmp_path)
        assert done.returncode == 0
        assert "python -m worker [OPTIONS] COMMAND" in done.stdout
        assert "check" in done.stdout

    def test_no_command(self, tmp_path: Path) -> None:
        """Without a command the help is shown, as a mistake."""
        done = run(cwd=tmp_path)
        assert done.returncode == 2
        assert "check" in done.stdout + done.stderr

    def test_unknown_command(self, tmp_path: Path) -> None:
        """An unknown command is named, without a traceback."""
        done = run("chekc", cwd=tmp_path)
        assert done.returncode == 2
        assert "chekc" in done.stderr
        assert "Traceback" not in done.stderr

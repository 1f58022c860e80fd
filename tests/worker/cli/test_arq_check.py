"""``python -m worker check --arq``: what a project's settings of arq become, without a connection."""

from pathlib import Path

import pytest

from tests.worker.cli.test_cli import run

APP = """
from arq import cron, func
from arq.connections import RedisSettings

async def download(ctx, url): ...
async def sweep(ctx): ...
async def startup(ctx): ...

class WorkerSettings:
    functions = [download]
    cron_jobs = [cron(sweep, hour=3)]
    on_startup = startup
    max_jobs = 20
    poll_delay = 0.1
    redis_settings = RedisSettings("redis.example", password="secret")

class Refused:
    functions = [download, print]
    max_jobs = 0
    redis_pool = object()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of arq's kind."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "broken.py").write_text("import nothing_of_the_kind\n")
    (tmp_path / "moved.py").write_text("from app import WorkerSettings\nfrom worker.settings import from_arq\n"
                                       "Settings = from_arq(WorkerSettings)\n")  # fmt: skip
    return tmp_path


def test_it_prints_each_task_and_what_each_setting_becomes(project: Path) -> None:
    """And what is not set yet. It connects to nothing, and prints no password."""
    done = run("check", "--arq", "app.WorkerSettings", cwd=project, TZ="UTC")
    assert done.returncode == 0, done.stderr
    assert "app.WorkerSettings (app.py): 2 tasks" in done.stdout
    assert "cron:sweep  app.py:6" in done.stdout
    for line in (
        "redis_settings       RedisSettings     REDIS_URL=redis://:***@redis.example:6379/0",
        "on_startup           startup           called before the first job, with the database open",
        "max_jobs             20                WORKER_CONCURRENCY=20",
        "poll_delay           0.1               not needed: a new job wakes a worker",
        "job_completion_wait  0, arq's default  a job that runs at a shutdown gets WORKER_GRACE seconds to end",
        "job_serializer       arq's default     arq's pickles: they fail and are kept until WORKER_ACCEPT_PICKLE=true",
    ):
        assert line in done.stdout
    assert "secret" not in done.stdout + done.stderr
    assert done.stderr.startswith("DATABASE_URL is not set. Example: ")


def test_refusals_are_a_line_each_on_standard_error_and_the_code_is_1(project: Path) -> None:
    """What the other settings become is printed all the same."""
    done = run("check", "--arq", "app.Refused", cwd=project)
    assert done.returncode == 1
    assert "max_jobs" in done.stdout
    assert done.stderr.splitlines() == [
        "app.Refused: 3 problems",
        "- redis_pool: Tandem opens connections of its own: give redis_settings, or set REDIS_URL",
        "- functions[1]: print is not a coroutine function: write async def, or @task, which calls it in a thread",
        "- max_jobs: WORKER_CONCURRENCY=0 is not a whole number, 1 or more. Example: WORKER_CONCURRENCY=8",
    ]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("app", "--arq=app: give the path of the class that arq is started with. Example: --arq app.WorkerSettings"),
        ("app.Missing", "app.py has no 'Missing'."),
        ("nowhere.WorkerSettings", "there is no module nowhere"),
        ("broken.WorkerSettings", "there is no module nothing_of_the_kind"),
        ("app.download", "has no settings of arq's"),
        ("worker.errors", "has no settings of arq's"),
        ("moved.Settings", "is a Settings class of Tandem's already"),
    ],
)
def test_a_path_that_is_no_class_of_settings_is_a_mistake(project: Path, path: str, line: str) -> None:
    """One line, and code 2."""
    urls = {"DATABASE_URL": "sqlite+aiosqlite:///app.sqlite3"}
    done = run("check", "--arq", path, cwd=project, **urls)
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_value_of_the_environment_that_does_not_count_is_named(project: Path) -> None:
    """As the class says something else."""
    done = run("check", "--arq", "app.WorkerSettings", cwd=project, WORKER_CONCURRENCY="5")
    assert "WORKER_CONCURRENCY=5 does not count: app.WorkerSettings has max_jobs=20" in done.stderr

"""Which modules a process loads: one that declares tasks, and one that shows the help of the command line.

Seconds vary with the machine; modules do not. Each list has exact names of modules that such a process does not need.
"""

import os
import subprocess
import sys

import pytest

import worker

_ENGINE = ("arq", "worker.engine", "worker.process", "worker.registry", "worker.settings", "worker.cli")
_SERVERS = ("redis", "hiredis", "asyncpg", "psycopg", "aiosqlite", "alembic", "mako")
_DIALECTS = ("sqlalchemy.dialects.postgresql", "sqlalchemy.dialects.sqlite")
_TERMINAL = ("typer", "click", "rich", "psutil")
_WEB = ("starlette", "jinja2", "fastapi", "uvicorn", "prometheus_client", "opentelemetry", "sentry_sdk")
_VALIDATION = ("pydantic.main", "pydantic_settings", "worker.config")
_DECLARING = (*_ENGINE, *_SERVERS, *_DIALECTS, *_TERMINAL, *_WEB, *_VALIDATION)
_COMMANDS = ("worker.cli.run", "worker.cli.jobs", "worker.cli.failures", "worker.cli.output", "worker.embedded")
_HELP = (
    *(name for name in _ENGINE if name not in ("worker.cli", "worker.process")),
    *(*_SERVERS, *_DIALECTS, "sqlalchemy", "db", "psutil", "asyncio", *_WEB, "worker.config", *_COMMANDS),
)
_PUBLIC = "from worker import Broker, Job, JobContext, Resource, Retry, cron, task"
_DECLARED = (
    f"{_PUBLIC}\n"
    "@task(timeout=30)\nasync def send(order_id: int) -> None: ...\n"
    "@cron('*/5 * * * *')\nasync def tidy() -> None: ...\n"
)
_SHOW_MODULES = "import sys; print(*sorted(sys.modules), file=sys.stderr)"


def modules_after(code: str, *arguments: str, **environment: str) -> set[str]:
    """The modules that a new interpreter has loaded when `code` has run."""
    given = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    done = subprocess.run(
        [sys.executable, "-c", f"import atexit\natexit.register(lambda: exec({_SHOW_MODULES!r}))\n{code}", *arguments],
        env=given | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize("code", ["import worker", _PUBLIC, _DECLARED], ids=["import", "names", "tasks"])
def test_declaring_tasks_loads_no_engine_no_driver_and_no_settings(code: str) -> None:
    """A web process that imports its tasks loads what declaring them needs."""
    loaded = modules_after(f"import sqlalchemy.ext.asyncio\n{code}")
    assert "worker" in loaded
    assert loaded & {*_DECLARING} == set()


def test_the_default_broker_loads_what_the_first_enqueue_needs() -> None:
    """An app that asks for it at its start blocks no request with imports."""
    code = "from worker import default_broker\ndefault_broker()"
    loaded = modules_after(code, REDIS_URL="redis://nobody.invalid")
    assert {"redis.asyncio", "pydantic.main", "worker.config", "worker.broker.connections"} <= loaded


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []], ids=["help", "version", "none"])
def test_the_help_loads_nothing_that_only_commands_need(arguments: list[str]) -> None:
    """`tandem --help`, `tandem --version` and `tandem` import no command."""
    loaded = modules_after("from worker.__main__ import main\nmain()", *arguments)
    assert "worker.cli" in loaded
    assert loaded & {*_HELP} == set()


def test_the_completion_of_names_loads_nothing_that_only_commands_need() -> None:
    """A shell that completes the name of a command does not wait for the libraries of the commands."""
    loaded = modules_after(
        "import sys\nsys.argv = ['tandem']\nfrom worker.__main__ import main\nmain()",
        _TANDEM_COMPLETE="complete_bash",
        COMP_WORDS="tandem he",
        COMP_CWORD="1",
    )
    assert "worker.cli" in loaded
    assert loaded & {*_HELP} == set()


def test_every_public_name_is_the_one_of_its_module() -> None:
    """Also `task` and `cron`, of which there are modules too, in whatever order both are imported."""
    for name in worker.__all__:
        assert getattr(worker, name) is not None
        assert name in dir(worker)
    code = "import worker.task, worker.cron, worker\nfrom worker import cron, task\n"
    modules_after(f"{code}assert callable(task) and callable(cron) and callable(worker.task)")
    modules_after(f"from worker import cron, task\n{code}assert worker.task is task")
    with pytest.raises(AttributeError, match="has no attribute 'tasks'"):
        worker.tasks  # noqa: B018 - the access is the test

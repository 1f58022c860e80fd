"""Mistakes on the command line: one line that says what to do next, a fitting exit code, and never a traceback."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import bare_environment
from tests.servers import Observer

Tandem = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a scheduled task."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/__init__.py").touch()
    (tmp_path / "tasks/mail.py").write_text(
        'from worker import cron\n\n@cron("30 2 * * *")\nasync def clean_up() -> None: ...\n'
    )
    (tmp_path / "tasks/registry.py").write_text('TASKS = ("tasks.mail.clean_up",)\n')
    return tmp_path


@pytest.fixture
def tandem(project: Path, database_url: str, redis_url: str, postgres: Observer) -> Tandem:
    """Runs a command in the project, on this test's servers."""

    def call(*arguments: str | bytes, stdout: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "worker", *arguments],
            cwd=project,
            env=bare_environment(DATABASE_URL=database_url, REDIS_URL=redis_url, COLUMNS="40"),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )

    return call


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line on standard error."""
    (line,) = done.stderr.splitlines()
    return line


@pytest.mark.parametrize("noun", ["queues", "schedules"])
@pytest.mark.parametrize(
    ("until", "says"),
    [
        ("99999999999d", "there is no such time"),
        ("9999-12-31T23:59:59-14:00", "there is no such time"),
        ("0001-01-01T00:00", "--until 0001-01-01T00:00: "),
        ("2020-01-01T00:00Z", "is not in the future"),
        ("0s", "is not in the future"),
        ("soon", "write a length as 30m"),
    ],
)
def test_a_pause_until_an_impossible_time_is_refused(tandem: Tandem, noun: str, until: str, says: str) -> None:
    """Neither an overflow nor a time that is over pauses anything."""
    done = tandem(noun, "pause", "clean_up", "--until", until)
    assert done.returncode == 2
    assert says in refusal(done)
    assert "--until" in refusal(done)


@pytest.mark.parametrize("action", ["pause", "drain", "resume", "purge"])
def test_a_queue_without_a_name_is_refused(tandem: Tandem, action: str) -> None:
    """An unset variable of a shell must not pause the queue ''."""
    done = tandem("queues", action, "")
    assert done.returncode == 2
    assert "'tandem queues list' shows them" in refusal(done)


@pytest.mark.parametrize("command", [("queues", "pause"), ("jobs", "show"), ("enqueue",)])
def test_an_argument_that_is_no_text_is_refused(tandem: Tandem, command: tuple[str, ...]) -> None:
    """No server takes it, and no error of a server explains it."""
    done = tandem(*command, b"\xff\xfe")
    assert done.returncode == 2
    assert "this argument is no valid text" in refusal(done)


@pytest.mark.parametrize("command", [("jobs", "list"), ("audit",)])
def test_a_limit_that_no_database_takes_is_refused(tandem: Tandem, command: tuple[str, ...]) -> None:
    """The error names the option, and not DATABASE_URL."""
    done = tandem(*command, "--limit", "99999999999999999999")
    assert done.returncode == 2
    assert "--limit" in refusal(done)


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (("nosuch",), "see 'python -m worker --help'"),
        (("queues", "nosuch"), "see 'python -m worker queues --help'"),
        (("jobs", "list", "--nosuch"), "see 'python -m worker jobs list --help'"),
        (("enqueue",), "see 'python -m worker enqueue --help'"),
        (("run", "--processes", "999999"), "see 'python -m worker run --help'"),
    ],
)
def test_a_mistake_in_the_arguments_names_the_help(tandem: Tandem, command: tuple[str, ...], hint: str) -> None:
    done = tandem(*command)
    assert done.returncode == 2
    assert refusal(done).endswith(hint)


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (("jobs", "abort", "no such"), "tandem jobs why 'no such'"),
        (("jobs", "run-now", "nosuch"), "tandem jobs why nosuch"),
        (("jobs", "run", "nosuch"), "tandem jobs why nosuch"),
        (("jobs", "retry", "nosuch"), "tandem jobs why nosuch"),
        (("queues", "resume", "nosuch"), "tandem queues list"),
        (("schedules", "resume", "clean_up"), "tandem schedules list"),
        (("workers",), "tandem run"),
        (("health",), "tandem run"),
    ],
)
def test_a_command_that_finds_nothing_says_what_to_type(tandem: Tandem, command: tuple[str, ...], hint: str) -> None:
    done = tandem(*command)
    assert done.returncode == 1
    assert hint in refusal(done)


@pytest.mark.parametrize("command", ["workers", "health"])
def test_json_without_a_worker_is_valid_and_the_command_fails(tandem: Tandem, command: str) -> None:
    """A script gets the same exit code with `--json` as without."""
    done = tandem(command, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout) in ([], {"workers": {}})


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("command", [("check",), ("--help",), ("queues", "list", "--json")])
def test_output_that_cannot_be_written_is_one_line(tandem: Tandem, command: tuple[str, ...]) -> None:
    """A full disk is no traceback, and the command fails."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = tandem(*command, stdout=full)
    finally:
        os.close(full)
    assert done.returncode == 1
    assert refusal(done) == "standard output: No space left on device"

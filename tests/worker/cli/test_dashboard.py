"""`tandem dashboard`: it refuses to start without a decision, serves, and ends with the terminal."""

import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.commands import bare_environment
from tests.worker.cli.test_cli import run
from worker.embedded.port import free_port

TOKEN = "a-token-of-the-test"


@pytest.mark.parametrize(
    ("arguments", "settings", "line"),
    [
        ((), {}, "decide who may see the dashboard: set WORKER_DASHBOARD_TOKEN"),
        (("--loopback-only", "--host", "0.0.0.0"), {}, "--loopback-only does not fit --host 0.0.0.0"),
        (
            (),
            {"WORKER_DASHBOARD_TOKEN": "short"},
            "WORKER_DASHBOARD_TOKEN=*** is not a secret of 12 characters or more",
        ),
    ],
)
def test_without_a_decision_it_does_not_start(
    arguments: tuple[str, ...], settings: dict[str, str], line: str, tmp_path: Path
) -> None:
    """One line, and exit code 2. A secret is not printed, even a wrong one."""
    done = run("dashboard", *arguments, cwd=tmp_path, **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_it_serves_and_ends_with_the_terminal(tmp_path: Path, database_url: str, redis_url: str) -> None:
    """Who has the token sees a page."""
    port = free_port()
    settings = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "WORKER_DASHBOARD_TOKEN": TOKEN}
    command = [sys.executable, "-m", "worker", "dashboard", "--port", str(port), "--title", "Shop"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=bare_environment(**settings), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert f"http://127.0.0.1:{port}/" in process.stderr.readline()
        page = f"http://127.0.0.1:{port}/jobs"
        request = urllib.request.Request(page, headers={"authorization": f"Bearer {TOKEN}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert b"Shop" in answer.read()
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(page, timeout=10)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert "Traceback" not in stderr

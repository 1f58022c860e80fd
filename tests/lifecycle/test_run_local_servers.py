"""``python -m worker run`` without URLs: it starts local servers, which other processes can reach."""

import signal
import subprocess
import sys
from pathlib import Path

from tests.commands import Command, bare_environment
from tests.waiting import eventually

REGISTRY = {"WORKER_REGISTRY": "tests.lifecycle.run_tasks"}


def env(folder: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    """`python -m worker env`, or another command, without URLs."""
    return subprocess.run(
        [sys.executable, "-m", "worker", *(command or ("env",))],
        cwd=folder,
        env=bare_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


async def test_other_processes_reach_the_local_servers_through_worker_env(tmp_path: Path) -> None:
    """The worker prints that it has started servers and how to reach them. They end with it."""
    with Command("worker", "run", folder=tmp_path, environment=REGISTRY) as run:
        await run.says("works on")
        assert run.output.startswith("DATABASE_URL and REDIS_URL are not set: this run has a PostgreSQL and a Redis")
        assert "eval $(python -m worker env)" in run.output
        script = f"eval $({sys.executable} -m worker env) && {sys.executable} -m worker health"

        def is_healthy() -> bool:
            shell = ["sh", "-c", script]
            done = subprocess.run(shell, cwd=tmp_path, env=bare_environment(), capture_output=True, check=False)
            return done.returncode == 0

        await eventually(is_healthy, timeout=20)
        unset = env(tmp_path, "queues", "list")
        assert unset.returncode == 2
        assert unset.stderr.splitlines()[1:] == [
            "To use the servers that this project's run has started, type: eval $(python -m worker env)"
        ]
        assert (tmp_path / ".tandem").stat().st_mode & 0o077 == 0
        run.send(signal.SIGTERM)
        assert await run.ends() == 0
    assert not [*(tmp_path / ".tandem").glob("*.json")]
    done = env(tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1


async def test_only_the_server_without_a_url_is_started(tmp_path: Path, sqlite_url: str) -> None:
    """A given URL is used and not recorded. The record of a killed worker is not used."""
    environment = REGISTRY | {"DATABASE_URL": sqlite_url}
    with Command("worker", "run", folder=tmp_path, environment=environment) as run:
        await run.says("works on")
        assert run.output.startswith("REDIS_URL is not set: this run has a Redis of its own")
        done = env(tmp_path)
        assert done.returncode == 0
        assert done.stdout.startswith("export REDIS_URL='unix://")
        assert "DATABASE_URL" not in done.stdout
        run.send(signal.SIGKILL)
        await run.ends()
    assert [*(tmp_path / ".tandem").glob("*.json")]
    await eventually(lambda: env(tmp_path).returncode == 1, timeout=20)

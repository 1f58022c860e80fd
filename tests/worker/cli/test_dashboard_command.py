"""`tandem dashboard`: the address that it listens on."""

import socket
from pathlib import Path

from tests.worker.cli.test_cli import run


def test_a_port_in_use_is_one_line(tmp_path: Path, redis_url: str, database_url: str) -> None:
    """And exit code 2, as for any mistake in the command."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        command = ("dashboard", "--loopback-only", "--port", port)
        done = run(*command, cwd=tmp_path, REDIS_URL=redis_url, DATABASE_URL=database_url)
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"cannot listen on 127.0.0.1, port {port}: Address already in use")

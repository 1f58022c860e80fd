"""examples/shop, as its user has it: installed from the wheel, migrated, tested, and served with a real worker."""

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.packaging.conftest import Installed, installed, wheel
from tests.servers import Databases, as_url
from tests.waiting import eventually

__all__ = ["installed", "wheel"]

SHOP = Path(__file__).parents[2] / "examples" / "shop"


class _Carrier(BaseHTTPRequestHandler):
    """Gives each order a parcel."""

    def do_PUT(self) -> None:
        body = json.dumps({"number": self.path.replace("/parcels/", "P")}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@contextmanager
def carrier() -> Iterator[str]:
    """The address of a carrier's API."""
    with HTTPServer(("127.0.0.1", 0), _Carrier) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class Project:
    """A copy of the example in an empty folder."""

    def __init__(self, folder: Path, python: Path, settings: dict[str, str]) -> None:
        self.folder = folder
        self._python = python
        self._settings = {"PATH": "/usr/bin:/bin", "HOME": str(folder), **settings}
        shutil.copytree(SHOP, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", ".*"))

    def run(self, *command: str) -> str:
        """Run ``python -m <command>`` to its end, and return its output."""
        ran = subprocess.run(
            [str(self._python), "-m", *command],
            cwd=self.folder,
            env=self._settings,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout + ran.stderr

    @contextmanager
    def serving(self, *command: str) -> Iterator[None]:
        """Run ``python -m <command>`` for the length of a block."""
        with subprocess.Popen([str(self._python), "-m", *command], cwd=self.folder, env=self._settings) as server:
            try:
                yield
            finally:
                server.terminate()


@pytest.fixture
def project(
    installed: Installed, databases: Databases, redis_url: str, tmp_path: Path
) -> Iterator[tuple[Project, str]]:
    """The project, and the URL of its database, which is empty."""
    with databases.bare() as database, carrier() as address:
        settings = {
            "DATABASE_URL": as_url(database, "asyncpg"),
            "REDIS_URL": redis_url,
            "WORKER_REGISTRY": "shop.registry",
            "WORKER_QUEUES": "shipping,arq:queue",
            "SHOP_CARRIER": address,
            "SHOP_TOKEN": "a token of the test",
        }
        plain = database.set(drivername="postgresql").render_as_string(hide_password=False)
        yield Project(tmp_path / "shop", installed.python, settings), plain


async def test_the_example_tests_itself_and_ships_an_order(project: tuple[Project, str]) -> None:
    """Its own tests pass without Redis, and a paid order is shipped by a worker."""
    shop, database = project
    shop.run("alembic", "upgrade", "head")
    assert "12 passed" in shop.run("pytest", "-q", "-p", "no:cacheprovider")
    socket = str(shop.folder / "s")
    transport = httpx.AsyncHTTPTransport(uds=socket)
    with shop.serving("uvicorn", "shop.web:app", "--uds", socket, "--log-level", "warning"):
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            await eventually(lambda: Path(socket).exists(), timeout=30)
            placed = await client.post("/orders", json={"id": 7, "email": "ann@example.org"})
            paid = await client.post("/orders/7/payment")
            jobs = await client.get("/jobs/jobs?state=waiting", headers={"authorization": "Bearer a token of the test"})
        assert (placed.status_code, paid.status_code, paid.json()) == (201, 202, {"job": "ship-7"})
        assert "ship-7" in jobs.text
    shop.run("arq", "worker.Settings", "--burst")
    shop.run("worker", "run", "--burst")
    connection = await asyncpg.connect(database)
    try:
        assert await connection.fetchrow("SELECT state, parcel FROM orders") == ("shipped", "P7")
        assert await connection.fetchval("SELECT count(*) FROM tandem_jobs WHERE state <> 'done'") == 0
    finally:
        await connection.close()

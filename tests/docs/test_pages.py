"""The blocks of the pages run as they stand, in their order, in an empty folder, on real servers."""

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from tests.docs.page_runner import blocks
from tests.servers import Databases, as_url

PROJECT = Path(__file__).parents[2]
DOCS = PROJECT / "docs"
OTHERWISE = {
    "acting": "tests/examples/test_command_line_page.py",
    "alembic": "tests/lifecycle/test_alembic.py",
    "dashboard": "tests/worker/dashboard/",
    "logging": "tests/lifecycle/test_logs.py",
    "monitoring": "tests/examples/test_monitoring_page.py",
    "operations": "tests/lifecycle/",
    "tracing": "tests/lifecycle/test_traces.py",
    "web": "tests/lifecycle/test_web_requests.py",
}
"""How-to pages whose blocks are parts of a project. The tests that hold what they say."""
RUN = [page for page in sorted((DOCS / "how-to").glob("*.md")) if page.stem not in OTHERWISE]


def needs_curl(page: Path) -> bool:
    return "$ curl" in page.read_text()


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
async def test_a_page_does_what_it_says(page: Path, databases: Databases, redis_url: str, tmp_path: Path) -> None:
    """Each block runs, and each command shows what the page shows."""
    if needs_curl(page) and shutil.which("curl") is None:
        pytest.skip("no curl on this machine: apt-get install curl")
    with databases.bare() as database:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.docs.page_runner",
            str(page),
            cwd=tmp_path,
            env={
                **{name: value for name, value in os.environ.items() if not name.startswith("WORKER_")},
                "DATABASE_URL": as_url(database, "asyncpg"),
                "REDIS_URL": redis_url,
                "PYTHONPATH": str(PROJECT),
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.stem)
def test_python_blocks_compile(page: Path) -> None:
    """Also those that are parts of a project."""
    for block in blocks(page.read_text()):
        if block.kind == "python":
            compile(block.code, f"{page.name}:{block.line}", "exec", flags=0x2000)  # await needs no function


def test_the_pages_that_are_not_run_exist_and_name_their_tests() -> None:
    """No page is left out by a name that is wrong."""
    assert [stem for stem in OTHERWISE if not (DOCS / "how-to" / f"{stem}.md").is_file()] == []
    assert [test for test in OTHERWISE.values() if not (PROJECT / test).exists()] == []

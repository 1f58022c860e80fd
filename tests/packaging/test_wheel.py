"""What users install: the packages `db` and `worker`, their types, and the command `tandem`."""

import importlib.metadata
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.conftest import PROJECT, Installed

TYPED = PROJECT / "tests" / "packaging" / "typed_project.py"

TASK = """
from worker import task

@task
async def send(order: int) -> None: ...
"""


def test_the_wheel_holds_db_and_worker_and_nothing_else(names: list[str]) -> None:
    """No tests, tasks or examples end up in a user's site-packages."""
    tops = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"db", "worker"}


def test_the_wheel_holds_all_that_the_packages_need_at_run_time(names: list[str]) -> None:
    """Markers for type checkers, Lua scripts and the dashboard's files are there as the modules are."""
    checkout = [file for package in ("db", "worker") for file in (PROJECT / package).rglob("*") if file.is_file()]
    wanted = {str(file.relative_to(PROJECT)) for file in checkout if "__pycache__" not in file.parts}
    assert {"db/py.typed", "worker/py.typed", "worker/broker/scripts/claim.lua"} <= wanted
    assert {"worker/dashboard/templates/layout.html", "worker/dashboard/static/dashboard.css"} <= wanted
    assert wanted - set(names) == set()


def test_the_tandem_command_works_from_any_folder(installed: Installed, tmp_path: Path) -> None:
    """`tandem` finds the project in the folder where it is called, and itself in site-packages."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").touch()
    (tmp_path / "tasks" / "mail.py").write_text(TASK)
    (tmp_path / "tasks" / "registry.py").write_text('TASKS = ("tasks.mail.send",)\n')
    checked = installed.run("tandem", "check", cwd=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "send" in checked.stdout
    where = installed.run("python", "-c", "import worker, db; print(worker.__file__, db.__file__)", cwd=tmp_path)
    assert all(place.startswith(str(installed.folder)) for place in where.stdout.split())


def test_tandem_version_prints_the_version(installed: Installed, tmp_path: Path) -> None:
    """The version stands in one place, and `tandem --version` says it."""
    told = installed.run("tandem", "--version", cwd=tmp_path)
    assert told.stdout == f"tandem {importlib.metadata.version('tandem-jobs')}\n"


@pytest.mark.parametrize(
    "checker",
    [
        ["mypy", "--strict", "--no-incremental", "--python-executable"],
        ["pyright", "--warnings", "--pythonpath"],
    ],
    ids=["mypy", "pyright"],
)
def test_a_users_project_type_checks_against_the_wheel(
    checker: list[str], installed: Installed, tmp_path: Path
) -> None:
    """Tasks, enqueueing, results and sessions have their types for whoever installs the wheel."""
    shutil.copy(TYPED, tmp_path / "app.py")
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict", "reportUnknownMemberType": false}')
    (tmp_path / "wrong.py").write_text('from app import send_receipt\nsend_receipt.enqueue(order_id="seven")\n')

    def check(file: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", *checker, str(installed.python), file]
        return subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=300)

    checked = check("app.py")
    assert checked.returncode == 0, checked.stdout + checked.stderr
    refused = check("wrong.py")
    assert refused.returncode == 1
    assert "order_id" in refused.stdout


@pytest.mark.parametrize(
    ("hidden", "imports"), [("db", "worker"), ("worker", "db"), ("worker", "db.asgi")], ids=["db", "worker", "asgi"]
)
def test_a_project_module_named_db_or_worker_is_reported_with_both_files(
    hidden: str, imports: str, installed: Installed, tmp_path: Path
) -> None:
    """`uvicorn app:app` and pytest put the project first on sys.path: a `db.py` or `worker.py` there hides ours."""
    theirs = tmp_path / f"{hidden}.py"
    theirs.write_text("raise SystemExit('nobody runs this')")
    told = installed.run("python", "-c", f"import {imports}", cwd=tmp_path)
    last = told.stderr.strip().splitlines()[-1]
    assert told.returncode == 1
    assert str(theirs) in last
    assert str(installed.packages / hidden / "__init__.py") in last
    assert "rename" in last

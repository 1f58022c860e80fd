"""docs/moving/from-arq.md has a row for everything of arq's, and each row names a test that exists."""

import inspect
import re
from pathlib import Path

import pytest
from arq import cron, func
from arq.cli import cli
from arq.connections import ArqRedis
from arq.jobs import Job
from arq.worker import Worker

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "moving" / "from-arq.md").read_text()
TABLES = dict(re.findall(r"^### (Every \w+)\n(.*?)(?=^##)", PAGE, re.MULTILINE | re.DOTALL))
ROWS = {title: [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
        for title, table in TABLES.items()}  # fmt: skip


def names(title: str, beginning: str = "") -> set[str]:
    """The code in the first column, of the rows that begin with a word."""
    cells = [cells[0] for cells in ROWS[title] if not beginning or cells[0].startswith(f"`{beginning}`:")]
    return {code for cell in cells for code in re.findall(r"`([^`]+)`", cell)} - {beginning}


def parameters(callee: object) -> set[str]:
    return set(inspect.signature(callee).parameters)  # type: ignore[arg-type]


def methods(kind: type) -> set[str]:
    """The public methods that a class defines itself."""
    return {name for name, member in vars(kind).items() if inspect.isfunction(member) and not name.startswith("_")}


def test_every_setting_of_arqs_worker_has_a_row() -> None:
    """And no other name has one."""
    assert names("Every setting") == parameters(Worker)


@pytest.mark.parametrize("callee", [func, cron])
def test_every_parameter_of_func_and_cron_has_a_row(callee: object) -> None:
    """Besides the function itself."""
    name = callee.__name__  # type: ignore[attr-defined]
    assert names("Every function", name) == parameters(callee) - {"coroutine"}


def test_every_option_of_enqueue_job_has_a_row() -> None:
    """Those that are not the job's own arguments."""
    options = {name for name in parameters(ArqRedis.enqueue_job) if name.startswith("_")}
    assert names("Every function", "enqueue_job") == options


def test_every_method_of_arqs_job_client_and_worker_has_a_row() -> None:
    """The public ones, those that only arq's own code calls left out."""
    rows = names("Every function")
    internal = {"main", "start_jobs", "run_job", "finish_job", "finish_failed_job", "heart_beat", "run_cron"}
    internal |= {"record_health", "handle_sig", "handle_sig_wait_for_completion"}
    assert {f"Job.{name}" for name in methods(Job)} <= rows
    assert methods(ArqRedis) <= rows
    assert {f"Worker.{name}" for name in methods(Worker) - internal} <= rows


def test_every_option_of_arqs_command_that_changes_a_worker_has_a_row() -> None:
    """Not those of its log."""
    options = {option for parameter in cli.params for option in parameter.opts if option.startswith("--")}
    of_the_log = {"--verbose", "--custom-log-dict", "--version"}
    assert {f"arq {option}" for option in options - of_the_log} <= names("Every function")


@pytest.mark.parametrize("row", [row for rows in ROWS.values() for row in rows], ids=lambda row: row[0])
def test_the_test_of_each_row_exists(row: list[str]) -> None:
    """In the file that the row names."""
    _, _, tested = row
    file, _, name = tested.strip("`").partition("::")
    assert re.search(rf"^ *(async )?def {name}\(", (PROJECT / file).read_text(), re.MULTILINE)

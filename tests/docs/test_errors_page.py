"""docs/reference/errors.md has a row for each error of `db` and `worker`, and for no others."""

import re
from pathlib import Path

import db.errors
import worker.errors

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "errors.md").read_text()
OTHERS = {"TypeError", "pydantic.ValidationError", "TimeoutError"}
"""Errors of Python's and pydantic's that have a row."""
BASES = {"WorkerError", "DbError", "ScopeError", "TransactionError"}
NOT_RAISED_AT_USERS = {"Stopped"}


def test_each_error_has_a_row() -> None:
    """With the reason and the remedy."""
    rows = [line.split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
    listed = {name for cells in rows for name in re.findall(r"`([\w.]+)`", cells[0])}
    raised = {
        name
        for module in (db.errors, worker.errors)
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == module.__name__
    }
    assert listed - OTHERS == raised - BASES - NOT_RAISED_AT_USERS - {"Retry"}
    assert all(len(cells) == 3 and cells[1].strip() and cells[2].strip(" |") for cells in rows)

"""Tandem has the names of the pages on moving sessions, and each row of their tables has a test that exists."""

import ast
import inspect
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import db
import db.asgi
import db.testing
from tests.commands import bare_environment
from tests.examples.terminals import Terminal, blocks
from tests.servers import Observer

PROJECT = Path(__file__).parents[2]
PAGES = {
    name: (PROJECT / "docs" / "moving" / f"{name}.md").read_text()
    for name in ("from-context-async-sqlalchemy", "from-asphalt")
}
TABLES = {
    f"{title} ({name})": text
    for name, page in PAGES.items()
    for title, text in re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
}


def rows(table: str) -> list[list[str]]:
    """The cells of a table's rows, without its head."""
    lines = [line for line in TABLES[table].splitlines() if line.startswith("| ")]
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines[1:]]


ALL_ROWS = [row for table in TABLES for row in rows(table)]
# Names of other libraries, and values, in the column of ours.
OURS = [
    code
    for table in TABLES
    if table.startswith("From")
    for row in rows(table)
    for code in re.findall(r"`([^`]+)`", row[1])
]


def functions_of(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


@pytest.mark.parametrize("row", ALL_ROWS, ids=lambda row: row[0][:40])
def test_each_row_has_a_test(row: list[str]) -> None:
    """Three cells, of which the last names a file of tests, or one test in it."""
    assert len(row) == 3
    path, _, name = row[2].strip("`").partition("::")
    assert (PROJECT / path).is_file()
    assert path.startswith("tests/")
    assert not name or name in functions_of(PROJECT / path)


@pytest.mark.parametrize("page", PAGES)
def test_there_are_at_most_ten_differences_each_with_a_reason(page: str) -> None:
    """A sentence each."""
    differences = rows(f"What stays different ({page})")
    assert 0 < len(differences) <= 10
    for difference, reason, _ in differences:
        assert difference.endswith(".")
        assert reason.endswith(".")


def parsed(code: str) -> ast.AST:
    """The code of a cell. A cell may have the head of a block, and ``{...}`` for any dict."""
    code = code.replace("{...}", "{}").removeprefix("async with ").removesuffix(":")
    if code.startswith("await "):
        code = code.removeprefix("await ")
    return ast.parse(f"async def _():\n async with {code}: pass" if " as " in code else code)


CALLEES: dict[str, Any] = {
    "add_middleware": db.asgi.SessionMiddleware,
    "change_host": db.Database.change_host,
    "dispose": db.Database.dispose,
}


def test_the_names_and_options_that_the_pages_give_exist() -> None:
    """Each ``db.…`` is a name of db's, and each keyword a parameter of what it is given to."""
    names, keywords = set[str](), 0
    for code in OURS:
        names.update(re.findall(r"\bdb\.((?:testing\.|asgi\.)?\w+)", code))
        if "(" not in code:
            continue
        for call in (node for node in ast.walk(parsed(code)) if isinstance(node, ast.Call)):
            function = ast.unparse(call.func)
            if function.startswith("db."):
                callee: Any = db
                for part in function.split(".")[1:]:
                    callee = getattr(callee, part)
            else:
                callee = CALLEES.get(function.rpartition(".")[2])
            if callee is None:
                continue
            parameters = inspect.signature(callee).parameters
            for keyword in call.keywords:
                assert keyword.arg in parameters, code
                keywords += 1
    assert keywords > 12
    assert len(names) > 15
    for name in names - {"asgi"}:
        module: Any = db
        for part in name.split("."):
            assert hasattr(module, part), name
            module = getattr(module, part)


async def test_the_function_of_the_page_commits(database_url: str, tmp_path: Path, postgres: Observer) -> None:
    """Its file and its command, as a reader uses them."""
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with Terminal(tmp_path, bare_environment(DATABASE_URL=database_url) | {"PATH": programs}) as terminal:
        for block in blocks(PAGES["from-asphalt"]):
            if block.language == "python" and block.text.startswith("# "):
                name, text = block.file
                (tmp_path / name).write_text(text)
            for command, shown in block.commands:
                await terminal.type(command, shown)
    assert await postgres.fetchval("SELECT id FROM orders") == 7

"""docs/troubleshooting.md shows each reason of `why` and each finding of `doctor`, as the code writes them."""

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import db
import worker
from tests.commands import bare_environment
from tests.examples.terminals import Terminal, blocks
from worker.admin.reason import ReasonKind
from worker.cli.doctor.finding import Level
from worker.config import Config
from worker.engine.heartbeat import STUCK

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "troubleshooting.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
MARKS = {Level.NOTE: "·", Level.WARNING: "!", Level.ERROR: "✗"}
_SHORT = 8  # characters: a template with fewer of its own could match anything


def rows(title: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    lines = [line for line in SECTIONS[title].splitlines() if line.startswith("| ")]
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in lines[1:]]


REASONS = [(cells[0].strip("`"), cells[1].strip("`"))
           for title in ("A job does not start", "A job has ended") for cells in rows(title)]  # fmt: skip
FINDINGS = [[cell.strip("`") for cell in cells] for cells in rows("What doctor says")]


def template(node: ast.expr) -> str | None:
    """The regular expression of the texts that a literal can make. None if it is no text."""
    match node:
        case ast.Constant(value=str(text)):
            return re.escape(text)
        case ast.JoinedStr(values=parts):
            return "".join(template(part) or ".*?" for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return (template(left) or ".*?") + (template(right) or ".*?")
    return None


def templates(unit: ast.AST) -> list[str]:
    """Those of all texts in a function or an assignment that say something."""
    found = [template(node) for node in ast.walk(unit) if isinstance(node, ast.expr)]
    return [each for each in found if each is not None and len(each.replace(".*?", "")) > _SHORT]


def sentences() -> Iterator[tuple[str, list[str]]]:
    """For each place in the code that makes reasons: their kind, and the templates that stand there."""
    for name in ("waiting.py", "why.py"):
        for unit in _units(ast.parse((PROJECT / "worker" / "admin" / name).read_text())):
            for kind in re.findall(r"ReasonKind\.([A-Z_]+)", ast.unparse(unit)):
                yield kind.lower(), templates(unit)


def _units(tree: ast.Module) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        # A tuple is a row of the table of ends.
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Tuple):
            yield node


def findings() -> Iterator[tuple[str, str, str]]:
    """Each finding in the code that is not fine: its mark, and the templates of subject and text."""
    for file in sorted((PROJECT / "worker" / "cli" / "doctor").glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Finding":
                level, subject, text, *_ = node.args
                mark = MARKS.get(Level[ast.unparse(level).rpartition(".")[2]])
                if mark is not None:
                    yield mark, template(subject) or ".*", template(text) or ".*"


def test_each_kind_of_reason_is_on_the_page_and_no_other() -> None:
    """The list is closed."""
    assert {kind for kind, _ in REASONS} == {kind.value for kind in ReasonKind}


@pytest.mark.parametrize(("kind", "sentence"), REASONS)
def test_the_first_line_of_a_reason_is_one_that_the_code_writes(kind: str, sentence: str) -> None:
    """For its kind."""
    known = [each for made, all_of_it in sentences() if made == kind for each in all_of_it]
    assert any(re.match(each, sentence) for each in known), known


def test_each_finding_of_doctor_that_is_not_fine_is_on_the_page() -> None:
    """With its mark, its subject and its text."""
    wanted = list(findings())
    assert len(wanted) > 20
    missing = [
        (mark, subject, text)
        for mark, subject, text in wanted
        if not any(
            mark == shown_mark and re.fullmatch(subject, shown) and (re.match(text, shown_text) or text == ".*")
            for shown_mark, shown, shown_text, _ in FINDINGS
        )
    ]
    assert missing == []


def test_the_page_shows_no_finding_that_doctor_does_not_have() -> None:
    """Mark and subject."""
    known = [(mark, subject) for mark, subject, _ in findings()]
    shown = {(mark, subject) for mark, subject, _, _ in FINDINGS}
    assert [
        each for each in shown if not any(each[0] == mark and re.fullmatch(name, each[1]) for mark, name in known)
    ] == []


def test_the_errors_and_settings_and_exit_codes_of_the_page_exist() -> None:
    """By the names that the page gives."""
    errors = set(re.findall(r"`(\w+Error)`", PAGE))
    assert len(errors) > 4
    assert [name for name in errors if not hasattr(db, name) and not hasattr(worker, name)] == []
    settings = {name.lower() for name in re.findall(r"\bWORKER_(\w+)", PAGE)}
    assert settings <= Config.model_fields.keys()
    assert f"| {STUCK} |" in SECTIONS["A worker ends by itself"]


async def test_the_pages_commands_find_the_reason_that_it_shows(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    """Each command, in the order of the page, on real servers."""
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = bare_environment(DATABASE_URL=database_url, REDIS_URL=redis_url) | {"PATH": programs}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").touch()
    with Terminal(tmp_path, environment) as terminal:
        for block in blocks(PAGE):
            if block.language == "python":
                name, text = block.file
                (tmp_path / name).write_text(text)
            for command, shown in block.commands:
                await terminal.type(command, shown)

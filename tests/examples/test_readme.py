"""README's example and commands run, the table of settings matches the code, and no page has a broken table or link."""

import asyncio
import os
import re
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from pydantic_core import PydanticUndefined

from tests.servers import Observer
from tests.settings_texts import field_texts
from tests.waiting import eventually
from worker.config import Config

PROJECT = Path(__file__).parent.parent.parent
README = (PROJECT / "README.md").read_text()
SETTINGS = (PROJECT / "docs" / "reference" / "settings.md").read_text()
PAGES = [*sorted(PROJECT.glob("*.md")), PROJECT / "bench" / "results.md", *sorted((PROJECT / "docs").rglob("*.md"))]
_TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
_CELL_END = re.compile(r"(?<!\\)\|")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
_LINK = re.compile(r"\]\(([^)]+)\)")
_FILE = re.compile(r"`((?:(?:db|worker|tasks|tests|examples|bench)/)?[\w/]+\.(?:py|lua)|(?:db|worker|tests)/[\w/]*/)`")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_ANCHOR = re.compile(r'<a id="([^"]+)">')
_SETTINGS = re.compile(r"<!-- settings: .* -->\n(.*)<!-- end of settings -->", re.DOTALL)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with README's example. The first line of each code block is the name of its file."""
    for language, block in _BLOCK.findall(README):
        if language == "python":
            first, _, code = block.partition("\n")
            file = tmp_path / first.removeprefix("# ")
            file.parent.mkdir(exist_ok=True)
            file.write_text(code)
    for name in re.findall("an empty `(.*?)`", README):
        (tmp_path / name).touch()
    return tmp_path


@asynccontextmanager
async def running(*command: str, folder: Path, **settings: str) -> AsyncIterator[Process]:
    """Run one of README's commands in `folder` for the length of the block."""
    program = Path(sys.executable).with_name(command[0])
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), **settings}
    process = await asyncio.create_subprocess_exec(program, *command[1:], cwd=folder, env=environment)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def answers(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/docs")).is_success
    except httpx.ConnectError:
        return False


async def test_the_readme_example_runs_word_for_word(
    project: Path, database_url: str, redis_url: str, postgres: Observer
) -> None:
    """With README's task, registry, application and commands, word for word, an order that is posted is shipped."""
    commands = [line.split()[1:] for line in README.splitlines() if line.startswith("$ ")]
    assert ["arq", "worker.Settings"] in commands
    assert ["uvicorn", "app:app"] in commands
    await postgres.execute("CREATE TABLE orders (id int PRIMARY KEY, state text)")
    socket = str(project / "s")
    settings = {"DATABASE_URL": database_url, "REDIS_URL": redis_url}
    transport = httpx.AsyncHTTPTransport(uds=socket)
    async with (
        running("arq", "worker.Settings", folder=project, **settings),
        running("uvicorn", "app:app", "--uds", socket, folder=project, **settings),
        httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
    ):
        await eventually(lambda: answers(client), timeout=30)
        assert (await client.post("/orders/7")).status_code == 200
        await eventually(
            lambda: postgres.fetchval("SELECT state FROM orders WHERE id = 7"), timeout=30, equals="shipped"
        )
        assert (await client.post("/orders/7")).status_code == 500


def test_the_readme_example_has_at_most_25_lines() -> None:
    """README's example stays short enough to read."""
    blocks = [block for language, block in _BLOCK.findall(README) if language == "python"]
    assert sum(bool(line.strip()) for block in blocks for line in block.splitlines()) <= 25


def test_the_settings_table_matches_config() -> None:
    """The table of settings has the texts of `Config`, word for word."""
    found = _SETTINGS.search(SETTINGS)
    assert found is not None
    assert found[1] == settings_table()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_a_file_and_a_heading(page: Path) -> None:
    """Every file that a page links to exists, and has the anchor that the link names."""
    missing = []
    for link in local_links(page.read_text()):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.is_file() or (anchor and anchor not in anchors(target.read_text())):
            missing.append(link)
    assert missing == []


def test_files_that_pages_name_exist() -> None:
    """Every file or folder of this repository that a page names, with or without its path, exists."""
    folders = ("db", "worker", "tasks", "tests", "examples", "bench")
    names = {file.name for folder in folders for file in (PROJECT / folder).rglob("*.*")}
    names.add("env.py")  # of a project's own Alembic
    named = {(page.name, path) for page in PAGES for path in _FILE.findall(page.read_text())}
    assert len(named) > 50
    assert sorted((page, path) for page, path in named if not (PROJECT / path).exists() and path not in names) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_row_of_a_table_has_all_cells(page: Path) -> None:
    """Each row of a table has as many cells as the table's head."""
    tables = [table.splitlines() for table in _TABLE.findall(page.read_text())]
    torn = [
        row for head, *rows in tables for row in rows if len(_CELL_END.findall(row)) != len(_CELL_END.findall(head))
    ]
    assert torn == []


def test_every_make_command_of_the_readme_is_a_target() -> None:
    """Every `make` command that README shows is a target of the Makefile."""
    targets = re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
    shown = re.findall(r"make ([a-z]+)", "\n".join(line for line in README.splitlines() if line.startswith("$ ")))
    assert shown
    assert set(shown) <= set(targets)


def test_every_figure_of_the_readme_was_measured() -> None:
    """Every figure in README's table of speeds is in the last measurement."""
    measured = re.findall(r"[\d.,]+", (PROJECT / "bench" / "results.md").read_text())
    section = README.partition("## Speed")[2].partition("\n## ")[0]
    rows = [row for row in section.splitlines() if row.startswith("| ")][1:]
    shown = [figure for row in rows for figure in re.findall(r"[\d.,]*\d", row.partition("|")[2].partition("|")[2])]
    assert len(shown) > 20
    assert set(shown) - set(measured) == set()


def local_links(text: str) -> list[str]:
    """The links of a page to files of this repository."""
    return [link for link in _LINK.findall(_CODE.sub("", text)) if "://" not in link]


def anchors(text: str) -> set[str]:
    """The anchors of a page: its headings as GitHub spells them, and its `<a id>`."""
    headings = (re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in _HEADING.findall(text))
    return {heading.replace(" ", "-") for heading in headings} | {*_ANCHOR.findall(text)}


def settings_table() -> str:
    """The settings as a table: variable, default, and the text under the field."""
    rows = ["| Variable | Default | |", "|---|---|---|"]
    texts = field_texts()
    for name, field in Config.model_fields.items():
        rows.append(f"| `{Config.variable(name)}` | {_shown(field.default)} | {texts[name]} |")
    return "\n".join(rows) + "\n"


def _shown(default: object) -> str:
    match default:
        case None:
            return ""
        case _ if default is PydanticUndefined:  # made by a factory, which the text tells of
            return ""
        case bool():
            return f"`{str(default).lower()}`"
        case float():
            return f"`{default:g}`"
        case _:
            return f"`{default}`"

"""The tasks of the census, each in a scope of its own on a real PostgreSQL and a real Redis."""

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import db
from tasks.census import index_file, refresh_totals, scan_folder
from tasks.models import Scan, create_tables
from tests.servers import Observer
from worker import Broker, Job

SOURCE = b"""\
class Outer:
    def method(self):
        async def inner():
            lambda: None

    class Inner: ...

def function(): ...
"""


@pytest.fixture(autouse=True)
async def _default_database(database_url: str) -> AsyncIterator[None]:
    """The default database, with the tables of the census."""
    database = db.Database(database_url, default=True)
    await create_tables()
    yield
    await database.dispose()
    db.set_default_database(None)


async def index(path: Path, scan_id: int | None = None) -> int:
    """Index a file in a scope of its own, as a worker does."""
    async with db.scope():
        module_id: int = await index_file(await db.session(), path, scan_id)
    return module_id


async def new_scan(folder: Path) -> int:
    async with db.scope():
        session = await db.session()
        scan = Scan(folder=str(folder))
        session.add(scan)
    return scan.id


async def jobs_of(scan_id: int) -> dict[str, str]:
    async with db.scope():
        session = await db.session()
        scan = await session.get_one(Scan, scan_id)
    assert scan.jobs is not None
    return scan.jobs


async def test_file_and_its_definitions_are_written(tmp_path: Path, postgres: Observer) -> None:
    """The job writes a module row and a row for each class and function at any depth, and returns the module's id."""
    path = tmp_path / "a.py"
    path.write_bytes(SOURCE)
    module_id = await index(path)
    (module,) = await postgres.fetch("SELECT id, path, lines, scan_id FROM modules")
    assert tuple(module) == (module_id, str(path), 8, None)
    definitions = await postgres.fetch("SELECT kind, name, line FROM definitions WHERE module_id = $1", module_id)
    assert {tuple(row) for row in definitions} == {
        ("class", "Outer", 1),
        ("function", "method", 2),
        ("function", "inner", 3),
        ("class", "Inner", 6),
        ("function", "function", 8),
    }


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(b"class Whole: ...\ndef broken(:\n", id="syntax"),
        pytest.param(b"name = 'f\xfcr'\n", id="not UTF-8"),
        pytest.param(b"# coding: no-such-encoding\n", id="unknown encoding"),
        pytest.param(b"def f(): ...\n\0", id="null byte"),
    ],
)
async def test_file_that_does_not_parse_leaves_nothing(tmp_path: Path, postgres: Observer, source: bytes) -> None:
    """The module's row, which is inserted before the parser fails, is rolled back."""
    path = tmp_path / "broken.py"
    path.write_bytes(source)
    with pytest.raises((SyntaxError, ValueError)):
        await index(path)
    assert await postgres.fetchval("SELECT is_called FROM modules_id_seq"), "the row was never sent"
    assert await postgres.fetchval("SELECT count(*) FROM modules") == 0
    assert await postgres.fetchval("SELECT count(*) FROM definitions") == 0


async def test_file_that_is_gone_leaves_nothing(tmp_path: Path, postgres: Observer) -> None:
    """A file that cannot be read fails its job."""
    with pytest.raises(FileNotFoundError):
        await index(tmp_path / "gone.py")
    assert await postgres.fetchval("SELECT count(*) FROM modules") == 0


@pytest.mark.parametrize(
    "source",
    [
        pytest.param("# coding: latin-1\ndef größe(): ...\n".encode("latin-1"), id="latin-1"),
        pytest.param("def größe(): ...\n".encode("utf-8-sig"), id="byte order mark"),
    ],
)
async def test_encoding_that_a_file_declares_is_obeyed(tmp_path: Path, postgres: Observer, source: bytes) -> None:
    """A file may have another encoding than UTF-8 if it declares that encoding."""
    path = tmp_path / "declared.py"
    path.write_bytes(source)
    await index(path)
    assert await postgres.fetchval("SELECT name FROM definitions") == "größe"


async def test_empty_file_is_a_module(tmp_path: Path, postgres: Observer) -> None:
    """A file without lines gets a module row."""
    path = tmp_path / "__init__.py"
    path.touch()
    await index(path)
    assert await postgres.fetchval("SELECT lines FROM modules") == 0


async def test_a_scan_enqueues_one_job_for_each_python_file(tmp_path: Path, broker: Broker) -> None:
    """A scan enqueues one job for each file, in subfolders too, and records which job belongs to which file."""
    package = tmp_path / "package"
    (package / "folder.py").mkdir(parents=True)
    (tmp_path / "venv" / "site-packages").mkdir(parents=True)
    files = [tmp_path / "a.py", package / "b.py", package / "folder.py" / "c.py"]
    others = [tmp_path / "venv" / "site-packages" / "installed.py", tmp_path / "notes.txt"]
    for file in (*files, *others):
        file.touch()
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere.py")
    scan_id = await new_scan(tmp_path)
    async with db.scope():
        assert await scan_folder(await db.session(), tmp_path, scan_id) == len(files)
    jobs = await jobs_of(scan_id)
    assert sorted(jobs) == sorted(map(str, files))
    assert await broker.depth(broker.name) == len(files)
    for path, job_id in jobs.items():
        info = await Job[int](job_id).info()
        assert info is not None
        assert (info.task, info.kwargs) == ("index_file", {"path": path, "scan_id": scan_id})


async def test_file_whose_name_cannot_be_encoded_is_left_out(tmp_path: Path, broker: Broker) -> None:
    """Neither JSON nor PostgreSQL can store such a name. The other files are enqueued."""
    (tmp_path / "a.py").touch()
    (tmp_path / os.fsdecode(b"f\xfcr.py")).touch()
    async with db.scope():
        assert await scan_folder(await db.session(), tmp_path) == 1
    assert await broker.depth(broker.name) == 1


async def test_scan_that_is_rolled_back_enqueues_nothing(tmp_path: Path, broker: Broker) -> None:
    """The jobs of a scan belong to its transaction."""
    (tmp_path / "a.py").touch()
    with pytest.raises(ZeroDivisionError):
        async with db.scope():
            await scan_folder(await db.session(), tmp_path)
            raise ZeroDivisionError
    assert await broker.depth(broker.name) == 0


async def test_empty_folder_is_a_scan_without_jobs(tmp_path: Path, broker: Broker) -> None:
    """A scan that found no file has an empty dict of jobs, not None."""
    scan_id = await new_scan(tmp_path)
    async with db.scope():
        assert await scan_folder(await db.session(), tmp_path, scan_id) == 0
    assert await jobs_of(scan_id) == {}
    assert await broker.depth(broker.name) == 0


async def test_totals_follow_what_is_indexed(tmp_path: Path, postgres: Observer) -> None:
    """Each run replaces the one row of totals by the present counts."""
    path = tmp_path / "a.py"
    path.write_bytes(SOURCE)

    async def refreshed() -> tuple[int, ...]:
        async with db.scope():
            await refresh_totals(await db.session())
        (totals,) = await postgres.fetch("SELECT modules, classes, functions, lines, counted_at FROM totals")
        *counts, counted_at = totals
        assert timedelta(0) <= datetime.now(UTC) - counted_at < timedelta(seconds=10)
        return tuple(counts)

    assert await refreshed() == (0, 0, 0, 0)
    await index(path)
    assert await refreshed() == (1, 2, 3, 8)
    await index(path)
    assert await refreshed() == (2, 4, 6, 16)


def test_totals_are_refreshed_every_five_seconds() -> None:
    """The schedule of `refresh_totals`, across the turn of a minute."""
    assert refresh_totals.schedule is not None
    start = datetime(2024, 1, 1, 11, 59, 54, tzinfo=UTC)
    slots = refresh_totals.schedule.slots_between(start, start + timedelta(seconds=11))
    assert [f"{slot:%M:%S}" for slot in slots] == ["59:55", "00:00", "00:05"]

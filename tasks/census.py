"""A census of Python source: one job for each file of a folder, and totals that a scheduled task refreshes."""

import ast
import asyncio
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from tasks.models import Definition, Module, Scan, Totals
from worker import cron, task


@task
async def scan_folder(session: AsyncSession, path: Path, scan_id: int | None = None) -> int:
    """Enqueue one `index_file` for each Python file under `path`. The jobs start when this one has committed."""
    files = await asyncio.to_thread(_python_files, path)
    jobs = await index_file.enqueue_many({"path": file, "scan_id": scan_id} for file in files)
    if scan_id is not None:
        scan = await session.get_one(Scan, scan_id)
        scan.jobs = {file: job.job_id for file, job in zip(files, jobs, strict=True)}
    return len(files)


@task
async def index_file(session: AsyncSession, path: Path, scan_id: int | None = None) -> int:
    """Save a file and its definitions; return the new module's id. A file that does not parse leaves no rows."""
    source = await asyncio.to_thread(path.read_bytes)
    module = Module(path=str(path), lines=len(source.splitlines()), scan_id=scan_id)
    session.add(module)
    await session.flush()  # inserts the module's row, which is rolled back if the next line raises
    for kind, name, line in _definitions(source, path):  # not in a thread: ast.parse of CPython 3.11 may fail in two
        session.add(Definition(module_id=module.id, kind=kind, name=name, line=line))
    return module.id


@cron("*/5 * * * * *")
async def refresh_totals(session: AsyncSession) -> None:
    """Count modules, lines, classes and functions every five seconds."""
    modules, lines = (await session.execute(select(func.count(Module.id), func.sum(Module.lines)))).one()
    kinds = dict((await session.execute(select(Definition.kind, func.count()).group_by(Definition.kind))).all())
    totals = Totals(id=1, modules=modules, lines=lines or 0, counted_at=datetime.now(UTC))
    totals.classes, totals.functions = kinds.get("class", 0), kinds.get("function", 0)
    await session.merge(totals)


def _python_files(folder: Path) -> list[str]:
    """The Python files in a folder, without those of installed packages and those with unprintable names."""
    found = (file for file in folder.rglob("*.py") if "site-packages" not in file.relative_to(folder).parts)
    return sorted(str(file) for file in found if file.is_file() and str(file).isprintable())


def _definitions(source: bytes, path: Path) -> list[tuple[str, str, int]]:
    """Kind, name and line of each class and function. Raises `SyntaxError`, or `ValueError` for a null byte."""
    return [
        ("class" if isinstance(node, ast.ClassDef) else "function", node.name, node.lineno)
        for node in ast.walk(ast.parse(source, path))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]

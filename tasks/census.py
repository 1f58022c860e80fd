"""A census of Python source: one job for each file of a folder, and totals that refresh themselves."""

import ast
import asyncio
import tokenize
from pathlib import Path

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from tasks.models import Definition, Module, Scan, Totals
from worker import cron, task


@task
async def scan_folder(session: AsyncSession, path: Path, scan_id: int | None = None) -> int:
    """Enqueue one `index_file` for each Python file under `path`; they start when this job has committed."""
    files = await asyncio.to_thread(_python_files, path)
    if scan_id is not None:
        scan = await session.get_one(Scan, scan_id)
        scan.files = len(files)
    await index_file.enqueue_many([{"path": file, "scan_id": scan_id} for file in files])
    return len(files)


@task
async def index_file(session: AsyncSession, path: Path, scan_id: int | None = None) -> int:
    """Write down a file and what it defines. One that does not parse leaves nothing, not even its module row."""
    with tokenize.open(path) as file:
        source = file.read()
    module = Module(path=str(path), lines=source.count("\n"), scan_id=scan_id)
    session.add(module)
    await session.flush()
    definitions = [
        Definition(module_id=module.id, kind=_KINDS[type(node)], name=node.name, line=node.lineno)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    session.add_all(definitions)
    return len(definitions)


@cron(second={0, 5, 10, 15, 20, 25, 30, 35, 40, 45, 50, 55})
async def refresh_totals(session: AsyncSession) -> None:
    """Count everything, every five seconds."""
    modules, lines = (await session.execute(select(func.count(Module.id), func.sum(Module.lines)))).one()
    kinds = dict((await session.execute(select(Definition.kind, func.count()).group_by(Definition.kind))).all())
    await session.merge(
        Totals(
            id=1, modules=modules, lines=lines or 0, classes=kinds.get("class", 0), functions=kinds.get("function", 0)
        )
    )


def _python_files(folder: Path) -> list[str]:
    return sorted(str(file) for file in folder.rglob("*.py"))


_KINDS = {ast.ClassDef: "class", ast.FunctionDef: "function", ast.AsyncFunctionDef: "function"}

"""The census as a web application: run ``uvicorn examples.web:app`` and ``arq worker.Settings``.

Run it only on your own machine, as every client can index any folder.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException
from fastapi import Path as InPath
from pydantic import AfterValidator, BaseModel, ConfigDict
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

import db
from db.asgi import SessionMiddleware, get_session
from examples import job_events
from tasks.census import scan_folder
from tasks.models import Module, Scan, create_tables
from worker import Job, JobStatus, default_broker


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    await create_tables()
    yield
    await default_broker().close()
    await db.default_database().dispose()


app = FastAPI(title="Census of Python source", lifespan=lifespan)
app.add_middleware(SessionMiddleware)
app.include_router(job_events.router)


def _readable_folder(path: Path) -> Path:
    if not path.is_absolute() or not os.access(path, os.R_OK | os.X_OK) or not path.is_dir():
        raise ValueError("this is not the absolute path of a readable folder")
    return path


RequestSession = Annotated[AsyncSession, Depends(get_session)]
ScanId = Annotated[int, InPath(ge=1, le=2**31 - 1)]


class ScanRequest(BaseModel):
    folder: Annotated[Path, AfterValidator(_readable_folder)]


class ScanProgress(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True)

    id: int
    folder: str
    files: int | None = None
    """Python files in the folder; null until they are counted."""
    indexed: int = 0
    """Files that are indexed so far."""
    failed: int | None = None
    """Files that could not be indexed; null until the scan is done."""
    done: bool = False
    """Whether all jobs of the scan have ended. After a failure this is known only while results are kept."""


@app.post("/scans", status_code=202)
async def start_scan(request: ScanRequest, session: RequestSession) -> ScanProgress:
    """Save a scan and enqueue its job. If this request's transaction does not commit, neither exists."""
    scan = Scan(folder=str(request.folder))
    session.add(scan)
    await session.flush()
    await scan_folder.enqueue(request.folder, scan.id)
    return ScanProgress(id=scan.id, folder=scan.folder)


@app.get("/scans/{scan_id}")
async def show_scan(scan_id: ScanId, session: RequestSession) -> ScanProgress:
    """Return the progress of a scan."""
    scan = await session.get(Scan, scan_id)
    if scan is None:
        raise HTTPException(404, f"There is no scan {scan_id}.")
    progress = ScanProgress(id=scan.id, folder=scan.folder)
    if scan.jobs is not None:
        progress.files = len(scan.jobs)
        progress.done = await _has_ended(scan.jobs, await _indexed(session, scan_id))
    # Counted after `done` is read: a job commits before it ends, so the rows of all ended jobs are counted.
    count = select(func.count()).select_from(Module).where(Module.scan_id == scan_id)
    progress.indexed = await session.scalar(count) or 0
    if progress.files is not None and progress.done:
        progress.failed = progress.files - progress.indexed
    return progress


async def _indexed(session: AsyncSession, scan_id: int) -> set[str]:
    return set(await session.scalars(select(Module.path).where(Module.scan_id == scan_id)))


async def _has_ended(jobs: dict[str, str], indexed: set[str]) -> bool:
    """Whether all jobs have ended. The job of an indexed file has ended, so only the other jobs are looked up."""
    for path, job_id in jobs.items():
        if path not in indexed and await Job(job_id).status() is not JobStatus.complete:
            return False
    return True

"""A job's progress as server-sent events: ``curl -N http://localhost:8000/jobs/<id>/events``.

In a browser: ``new EventSource("/jobs/<id>/events").addEventListener("progress", event => ...)``.
"""

import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import StreamingResponse

from worker import Job, JobStatus

router = APIRouter()


@router.get("/jobs/{job_id}/events")
async def job_events(job_id: str) -> StreamingResponse:
    """Send an event ``progress`` for each report of the job, and an event ``end`` when the job has ended."""
    job = Job[Any](job_id)
    if await job.status() is JobStatus.not_found:
        raise HTTPException(404, f"There is no job {job_id}.")
    # A proxy must not keep events back: nginx obeys the second header.
    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(_events(job), media_type="text/event-stream", headers=headers)


async def _events(job: Job[Any]) -> AsyncIterator[str]:
    async for progress in job.progress():
        yield _event("progress", done=progress.done, total=progress.total, note=progress.note)
    info = await job.info()
    yield _event("end", success=None if info is None else info.success)


def _event(name: str, **data: object) -> str:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"

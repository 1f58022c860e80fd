"""The example of server-sent events, over real HTTP, with a real engine."""

import asyncio
import json
from typing import Any

import pytest
from fastapi import FastAPI

from examples import job_events
from tests.waiting import eventually
from tests.web import serving
from tests.worker.engine.conftest import Worker
from worker import Broker, JobContext, task


@task
async def steps(job: JobContext) -> None:
    for number in range(1, 4):
        await job.progress(number, 3, "importing")
        await asyncio.sleep(0.6)


async def test_a_browser_gets_each_report_and_the_end(broker: Broker, redis_url: str) -> None:
    """As server-sent events. A client that leaves early leaves nothing behind."""
    app, worker = FastAPI(), Worker(redis_url, steps)
    app.include_router(job_events.router)
    worker.engine.start()
    try:
        async with serving(app) as client:
            job = await steps.enqueue()
            async with client.stream("GET", f"/jobs/{job.job_id}/events") as early:
                await anext(early.aiter_lines())
            response = await client.get(f"/jobs/{job.job_id}/events", timeout=20)
            assert response.headers["content-type"].startswith("text/event-stream")
            events = [dict(line.split(": ", 1) for line in event.splitlines()) for event in response.text.split("\n\n")]
            names = [event["event"] for event in events if event]
            assert names == ["progress"] * (len(names) - 1) + ["end"]
            data: list[Any] = [json.loads(event["data"]) for event in events if event]
            assert data[-2] == {"done": 3.0, "total": 3.0, "note": "importing"}
            assert data[-1] == {"success": True}
            await eventually(lambda: not broker.connections.subscriber._waiting)
            assert (await client.get("/jobs/nowhere/events")).status_code == 404
    finally:
        await worker.stop()


@pytest.fixture(autouse=True)
def _no_default_left() -> Any:
    """Reset the default broker."""
    from worker import set_default_broker

    yield
    set_default_broker(None)

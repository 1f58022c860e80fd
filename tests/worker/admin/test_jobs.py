"""One job, as the dashboard and the command line show it."""

from typing import Any

import pytest

from tests.waiting import eventually
from tests.worker.engine.conftest import StartWorker
from worker import Retry, task
from worker.admin.deployment import Deployment
from worker.admin.job_state import JobState
from worker.admin.jobs import Jobs

pytestmark = pytest.mark.usefixtures("database")


@task
async def greet(name: str) -> str:
    return f"hello {name}"


@task
async def fail(name: str) -> None:
    raise LookupError(name)


@task(max_tries=3)
async def come_back() -> None:
    raise Retry(60)


@pytest.fixture
def _no_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers do not write the list of ended jobs while the test runs."""
    monkeypatch.setattr("worker.engine.reporter._INTERVAL", 3600.0)


@pytest.mark.usefixtures("_no_reports")
@pytest.mark.parametrize(("declared", "state"), [(greet, JobState.DONE), (fail, JobState.FAILED)])
async def test_a_job_without_a_row_is_shown_as_soon_as_it_has_ended(
    deployment: Deployment, start: StartWorker, declared: Any, state: JobState
) -> None:
    """By its kept result: the list of ended jobs is written once a second."""
    job = await declared.enqueue("ann")
    async with start(declared) as one:
        await one.idle()
        jobs = Jobs(deployment, redact=lambda _task, _part, value: value)
        detail, other = await jobs.detail(job.job_id), await jobs.detail(job.job_id, 1)
    assert detail is not None
    assert (detail.state, detail.task, detail.tries) == (state, declared.name, 1)
    assert detail.arguments == {"args": [], "kwargs": {"name": "ann"}}
    assert (detail.result, detail.error) == (
        ("hello ann", None) if state is JobState.DONE else (None, "LookupError: ann")
    )
    assert other is None


async def test_a_job_that_waits_for_its_next_attempt_shows_the_worker_of_the_last_one(
    deployment: Deployment, start: StartWorker
) -> None:
    """With the error that it has met there, and at no cost for a job that succeeds at once."""
    job = await come_back.enqueue()
    jobs = Jobs(deployment, redact=lambda _task, _part, value: value)
    async with start(come_back, id="first"):
        await eventually(lambda: has_attempt(jobs, job.job_id))
    detail = await jobs.detail(job.job_id)
    assert detail is not None
    (attempt,) = detail.attempts
    assert (attempt.number, attempt.state, attempt.worker) == (1, "put back", "first")
    assert (attempt.error or "").startswith("Retry")
    assert attempt.finished_at is not None


async def has_attempt(jobs: Jobs, job_id: str) -> bool:
    detail = await jobs.detail(job_id)
    return detail is not None and detail.state is JobState.SCHEDULED and bool(detail.attempts)

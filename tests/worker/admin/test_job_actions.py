"""Single jobs: aborted, run now, retried and discarded by hand, each with its audit row."""

import asyncio
from typing import Any

import pytest

import db
from tests.servers import Observer
from tests.waiting import AT_ONCE, eventually
from tests.worker.admin.conftest import ACTOR
from tests.worker.engine.conftest import StartWorker
from worker import Job, JobStatus, Retry, task
from worker.admin.audit import AuditEntry, AuditLog
from worker.admin.deployment import Deployment
from worker.admin.job_actions import ActionRefusedError, JobActions

RUNS: list[str] = []

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    RUNS.clear()


@pytest.fixture
def actions(deployment: Deployment) -> JobActions:
    return JobActions(deployment)


@task
async def note(name: str) -> str:
    RUNS.append(name)
    return name


@task
async def hold(seconds: float) -> None:
    await asyncio.sleep(seconds)


@task
async def fail_once() -> str:
    RUNS.append("fail_once")
    if len(RUNS) == 1:
        raise RuntimeError("the first time")
    return "at last"


async def last_entry(deployment: Deployment) -> AuditEntry:
    (entry,) = await AuditLog(deployment).read(limit=1)
    return entry


async def failed(start: StartWorker) -> Job[str]:
    async with start(fail_once):
        job = await fail_once.enqueue()
        await eventually(job.status, equals=JobStatus.complete)
    return job


class TestAbort:
    async def test_a_waiting_job_and_a_running_job_are_aborted(
        self, actions: JobActions, deployment: Deployment, start: StartWorker
    ) -> None:
        """The caller does not wait for their ends."""
        async with start(note, hold):
            waiting, running = await note.using(delay=60).enqueue("n"), await hold.enqueue(60)
            await eventually(running.status, equals=JobStatus.in_progress)
            for job in (waiting, running):
                await actions.abort(job.job_id, actor=ACTOR)
                with pytest.raises(asyncio.CancelledError):
                    await job.result(timeout=AT_ONCE)
        assert RUNS == []
        entry = await last_entry(deployment)
        assert (entry.actor, entry.action, entry.subject, entry.outcome) == (ACTOR, "job.abort", running.job_id, "done")

    async def test_a_job_that_is_not_published_is_aborted_in_the_ledger(
        self, actions: JobActions, observer: Any, postgres: Observer
    ) -> None:
        """No relay publishes it any more."""
        async with db.scope():
            job = await note.enqueue("n")
        observer.flushdb()
        await actions.abort(job.job_id, actor=ACTOR)
        assert await postgres.fetchval("SELECT state FROM tandem_jobs") == "aborted"

    async def test_a_job_that_does_not_exist_is_refused(self, actions: JobActions, deployment: Deployment) -> None:
        """The audit row says so."""
        with pytest.raises(ActionRefusedError, match="nowhere neither waits nor runs"):
            await actions.abort("nowhere", actor=ACTOR)
        entry = await last_entry(deployment)
        assert entry.outcome == "failed: ActionRefusedError: job nowhere neither waits nor runs"


class TestRunNow:
    async def test_a_deferred_job_runs_at_once(self, actions: JobActions, start: StartWorker) -> None:
        """A sleeping worker is woken."""
        async with start(note):
            job = await note.using(delay=60).enqueue("n")
            await actions.run_now(job.job_id, actor=ACTOR)
            assert await job.result(timeout=AT_ONCE) == "n"

    async def test_a_job_that_was_put_back_runs_at_once(self, actions: JobActions, start: StartWorker) -> None:
        """Its tries count on."""

        @task
        async def again() -> int:
            RUNS.append("again")
            if len(RUNS) == 1:
                raise Retry(60)
            return len(RUNS)

        async with start(again):
            job = await again.enqueue()
            await eventually(job.status, equals=JobStatus.deferred)
            await actions.run_now(job.job_id, actor=ACTOR)
            assert await job.result(timeout=AT_ONCE) == 2

    async def test_a_job_that_is_not_published_is_published(
        self, actions: JobActions, deployment: Deployment, observer: Any
    ) -> None:
        """Due now, although it was deferred."""
        async with db.scope():
            job = await note.using(delay=60).enqueue("n")
        observer.flushdb()
        await actions.run_now(job.job_id, actor=ACTOR)
        assert await job.status() is JobStatus.queued
        assert (await last_entry(deployment)).outcome == "published"

    async def test_a_due_job_keeps_its_place_and_a_running_one_is_refused(
        self, actions: JobActions, deployment: Deployment, start: StartWorker, observer: Any
    ) -> None:
        """Neither becomes later."""
        due = await note.enqueue("n")
        before = observer.zscore("arq:queue", due.job_id)
        await actions.run_now(due.job_id, actor=ACTOR)
        assert observer.zscore("arq:queue", due.job_id) == before
        assert (await last_entry(deployment)).outcome == "it was due already"
        async with start(hold, note):
            running = await hold.enqueue(60)
            await eventually(running.status, equals=JobStatus.in_progress)
            with pytest.raises(ActionRefusedError, match="runs already"):
                await actions.run_now(running.job_id, actor=ACTOR)
            await actions.abort(running.job_id, actor=ACTOR)
            with pytest.raises(ActionRefusedError, match="no job nowhere waits"):
                await actions.run_now("nowhere", actor=ACTOR)

    async def test_a_later_job_of_the_id_is_not_touched(self, actions: JobActions) -> None:
        """A page may be old."""
        first = await note.using(job_id="same", delay=60).enqueue("n")
        assert first.enqueued_at is not None
        with pytest.raises(ActionRefusedError):
            await actions.run_now("same", actor=ACTOR, enqueued_at=first.enqueued_at.replace(year=2020))
        assert await first.status() is JobStatus.deferred


class TestFailedJobs:
    async def test_a_failed_job_is_retried_with_its_audit_row_in_one_transaction(
        self, actions: JobActions, deployment: Deployment, start: StartWorker, postgres: Observer
    ) -> None:
        """If the audit row cannot be written, the job stays failed."""
        job = await failed(start)
        await postgres.execute("ALTER TABLE tandem_jobs_audit ADD CONSTRAINT never CHECK (actor <> 'eve')")
        with pytest.raises(Exception, match="never"):
            await actions.retry(job.job_id, actor="eve")
        assert await postgres.fetchval("SELECT state FROM tandem_jobs") == "failed"
        await actions.retry(job.job_id, actor=ACTOR)
        entry = await last_entry(deployment)
        assert (entry.action, entry.outcome, entry.detail) == (
            "job.retry",
            "retried 1 job",
            {"jobs": 1, "ids": [job.job_id]},
        )
        async with start(fail_once):
            assert await job.result(timeout=AT_ONCE) == "at last"
        with pytest.raises(ActionRefusedError, match="is done, not failed"):
            await actions.retry(job.job_id, actor=ACTOR)

    async def test_a_failed_job_is_discarded(
        self, actions: JobActions, deployment: Deployment, start: StartWorker, postgres: Observer
    ) -> None:
        """Then it is failed no more."""
        job = await failed(start)
        await actions.discard(job.job_id, actor=ACTOR)
        assert await postgres.fetchval("SELECT state FROM tandem_jobs") == "discarded"
        assert (await last_entry(deployment)).action == "job.discard"
        with pytest.raises(ActionRefusedError, match="is discarded, not failed"):
            await actions.discard(job.job_id, actor=ACTOR)
        with pytest.raises(ActionRefusedError, match="the ledger has no job nowhere"):
            await actions.retry("nowhere", actor=ACTOR)

    async def test_without_a_ledger_there_is_nothing_to_retry(self, without_ledger: Deployment) -> None:
        """The message says what to set."""
        with pytest.raises(ActionRefusedError, match="set DATABASE_URL"):
            await JobActions(without_ledger).retry("any", actor=ACTOR)

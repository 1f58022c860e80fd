"""`why`: the one reason why a job does not run, or what became of it; each of them on real servers."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

import db
from tests.commands import Command
from tests.lifecycle.run_tasks import wait_for_file
from tests.waiting import AT_ONCE, eventually
from tests.worker.admin.conftest import ACTOR
from tests.worker.engine.conftest import StartWorker
from worker import Broker, Job, JobStatus, Retry, task
from worker.admin.deployment import Deployment
from worker.admin.queues import QueueAdmin
from worker.admin.why import Reason, ReasonKind, why
from worker.admin.workers import WorkerAdmin
from worker.ledger.admin import JobAdmin, JobFilter
from worker.metrics.records import WorkerState

QUEUE = "arq:queue"

pytestmark = pytest.mark.usefixtures("database")


@task
async def note(name: str = "") -> str:
    return name


@task
async def hold(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "held"


@task
async def fail() -> None:
    raise RuntimeError("no such mailbox")


@task
async def row(session: db.AsyncSession) -> str:
    await session.connection()
    return "done"


class Ask:
    """Asks for the reason of a job."""

    def __init__(self, deployment: Deployment) -> None:
        self.deployment = deployment

    async def __call__(self, job: Job[Any] | str) -> Reason:
        job_id = job if isinstance(job, str) else job.job_id
        reason = await why(job_id, deployment=self.deployment)
        assert reason.job_id == job_id
        return reason

    async def until(self, job: Job[Any] | str, kind: ReasonKind) -> Reason:
        """Ask until the reason is of this kind: workers' records are a second old."""

        async def is_kind() -> Reason | None:
            reason = await self(job)
            return reason if reason.kind is kind else None

        reason: Reason = await eventually(is_kind)
        return reason


@pytest.fixture
def ask(deployment: Deployment) -> Ask:
    return Ask(deployment)


@pytest.fixture
def queues(deployment: Deployment) -> QueueAdmin:
    return QueueAdmin(deployment)


@contextlib.asynccontextmanager
async def full(start: StartWorker, *tasks: Any, slots: int = 1) -> AsyncIterator[Job[str]]:
    """A worker with a slot that a job holds."""
    async with start(hold, *tasks, concurrency=slots):
        held = await hold.enqueue(30)
        await eventually(held.status, equals=JobStatus.in_progress)
        yield held
        await held.abort(timeout=AT_ONCE)


async def test_a_deferred_job_is_scheduled(ask: Ask) -> None:
    """The evidence has the due time."""
    reason = await ask(await note.using(delay=60).enqueue())
    assert reason.kind is ReasonKind.SCHEDULED
    assert reason.sentence.startswith("it is scheduled for ")
    assert abs(reason.evidence["due"] - datetime.now(UTC) - timedelta(seconds=60)) < timedelta(seconds=5)
    assert (reason.task, reason.queue) == (note.name, QUEUE)


async def test_a_job_of_a_paused_queue_waits_for_its_resumption(
    ask: Ask, queues: QueueAdmin, start: StartWorker
) -> None:
    """Who has paused it, and since when."""
    await queues.pause(QUEUE, actor=ACTOR)
    async with start(note):
        reason = await ask(await note.enqueue())
    assert reason.kind is ReasonKind.PAUSED
    assert ", by ann" in reason.sentence
    assert reason.next_step == f"tandem queues resume {QUEUE}"


async def test_of_a_drained_queue_only_later_jobs_wait_for_its_resumption(ask: Ask, queues: QueueAdmin) -> None:
    """The others are to be worked off."""
    before = await note.enqueue()
    await queues.drain(QUEUE, actor=ACTOR)
    await asyncio.sleep(0.01)
    after = await note.enqueue()
    assert (await ask(before)).kind is ReasonKind.NO_WORKER
    reason = await ask(after)
    assert reason.kind is ReasonKind.PAUSED
    assert "is drained since" in reason.sentence


async def test_a_job_of_a_queue_that_no_worker_serves(ask: Ask) -> None:
    """The next step is the command that starts one."""
    reason = await ask(await note.enqueue())
    assert (reason.kind, reason.sentence) == (ReasonKind.NO_WORKER, f"no worker serves its queue {QUEUE}")
    assert reason.next_step == f"start one: WORKER_QUEUES={QUEUE} python -m worker run"


async def test_a_job_of_a_queue_whose_workers_are_quiet(ask: Ask, deployment: Deployment, start: StartWorker) -> None:
    """They serve the queue, and claim nothing."""
    workers = WorkerAdmin(deployment)
    async with start(note):
        await eventually(workers.list)
        await workers.quiet("w", actor=ACTOR)

        async def is_quiet() -> bool:
            return [each.state for each in await workers.list()] == [WorkerState.QUIET]

        await eventually(is_quiet)
        reason = await ask(await note.enqueue())
    assert reason.kind is ReasonKind.NO_WORKER
    assert reason.sentence == f"no worker of its queue {QUEUE} claims jobs: w is quiet"
    assert reason.next_step == "resume a worker, or start another one"


async def test_a_job_of_a_queue_whose_workers_are_unwell(ask: Ask, start: StartWorker) -> None:
    """The sentence says what they lack."""

    async def away() -> None:
        raise OSError("away")

    async with start(hold, ask_database=away, concurrency=1):
        held = await hold.enqueue(30)
        await eventually(held.status, equals=JobStatus.in_progress)
        await asyncio.sleep(4)  # a worker is not unwell before
        reason = await ask.until(await note.enqueue(), ReasonKind.NO_WORKER)
        assert reason.sentence.endswith("claims jobs: w is unwell (the database does not answer)")
        assert reason.next_step == "look at its log, or start another worker"
        await held.abort(timeout=AT_ONCE)


async def test_a_job_whose_task_no_worker_knows(ask: Ask, start: StartWorker) -> None:
    """Before a worker has put it back, and after that."""
    async with full(start):
        waiting = await ask(await note.enqueue())
    assert waiting.kind is ReasonKind.UNKNOWN_TASK
    async with start(hold):
        job = await note.using(job_id="again").enqueue()
        await eventually(job.status, equals=JobStatus.deferred)
        reason = await ask(job)
    assert reason.kind is ReasonKind.UNKNOWN_TASK
    assert reason.sentence == f"no worker of its queue {QUEUE} knows the task {note.name}"
    assert reason.evidence["known_tasks"] == [hold.name]
    assert reason.evidence["worker"] == "w"


async def test_a_job_behind_a_full_pool(ask: Ask, start: StartWorker) -> None:
    """The sentence names the job that holds a slot longest."""
    async with full(start, note) as held:
        reason = await ask.until(await note.enqueue(), ReasonKind.SLOTS_TAKEN)
        assert reason.sentence.startswith(f"the only slot of the workers of its queue {QUEUE} is taken, the longest by")
        assert f"job {held.job_id} ({hold.name}) on w since" in reason.sentence
        assert [each["id"] for each in reason.evidence["jobs"]] == [held.job_id]


async def test_slots_that_jobs_of_another_queue_hold_are_taken(ask: Ask, start: StartWorker) -> None:
    """The evidence has these jobs, too."""
    async with start(hold, note, concurrency=1, queues=f"{QUEUE},other"):
        held = await hold.using(queue="other").enqueue(30)
        await eventually(held.status, equals=JobStatus.in_progress)
        reason = await ask.until(await note.enqueue(), ReasonKind.SLOTS_TAKEN)
        assert [(each["id"], each["queue"]) for each in reason.evidence["jobs"]] == [(held.job_id, "other")]
        await held.abort(timeout=AT_ONCE)


async def test_a_job_behind_many_others(ask: Ask, start: StartWorker) -> None:
    """With a backlog its place says more than the slots that are taken."""
    async with full(start, note):
        for number in range(5):
            await note.enqueue(str(number))
            await asyncio.sleep(0.002)
        reason = await ask.until(await note.enqueue("last"), ReasonKind.BEHIND)
        assert reason.sentence == f"5 due jobs come before it in its queue {QUEUE}"
        assert reason.evidence["before"] == 5


async def test_a_job_that_was_put_back(ask: Ask, start: StartWorker) -> None:
    """By which worker, until when, and why."""

    @task(max_tries=3)
    async def again() -> None:
        raise Retry(defer=60) from ValueError("not yet")

    async with start(again):
        job = await again.enqueue()
        await eventually(job.status, equals=JobStatus.deferred)
        reason = await ask(job)
    assert reason.kind is ReasonKind.PUT_BACK
    assert reason.sentence.endswith("after 1 failed try by worker w, Retry: run again in 60 s (ValueError: not yet)")
    assert reason.evidence["failed_tries"] == 1
    assert abs(reason.evidence["put_back_at"] - datetime.now(UTC)) < timedelta(seconds=10)


async def test_a_job_whose_worker_has_died_with_its_keeper(
    ask: Ask, broker: Broker, database_url: str, redis_url: str, tmp_path: Path
) -> None:
    """While its worker's record is fresh, or its lease is renewed, it runs. Then the end of its lease is told."""
    settings = {
        "WORKER_REGISTRY": "tests.lifecycle.run_tasks",
        "WORKER_ID": "w",
        "WORKER_LEASE": "30",
        "REDIS_URL": redis_url,
        "DATABASE_URL": database_url,
    }
    job = await wait_for_file.enqueue(str(tmp_path / "file"))
    with Command("worker", "run", folder=tmp_path, environment=settings) as run:
        await eventually((tmp_path / "file.begun").exists)
        await ask.until(job, ReasonKind.RUNNING)

        async def names_its_worker() -> bool:
            return (await ask(job)).evidence.get("worker") == "w"

        await eventually(names_its_worker)
        worker = psutil.Process(run.pid)
        for process in (worker, *worker.children(recursive=True)):
            process.suspend()
        died = await ask.until(job, ReasonKind.WORKER_DIED)
        assert died.sentence.startswith("worker w does not renew its lease, so it has died or stands still")
        assert timedelta(seconds=5) < died.evidence["lease_ends"] - datetime.now(UTC) < timedelta(seconds=31)
        for process in (*worker.children(recursive=True), worker):
            process.kill()
        worker.wait()
        assert (await ask(job)).kind is ReasonKind.WORKER_DIED


async def test_a_job_whose_row_is_committed_and_not_published(ask: Ask, observer: Any) -> None:
    """As after a process that died right after its COMMIT."""
    async with db.scope():
        job = await note.enqueue()
    observer.flushdb()
    reason = await ask(job)
    assert reason.kind is ReasonKind.NOT_PUBLISHED
    assert reason.next_step.startswith("start a worker: its relay publishes pending rows")
    assert (reason.task, reason.queue) == (note.name, QUEUE)


async def test_a_suspect_of_killing_workers(ask: Ask, start: StartWorker, observer: Any) -> None:
    """It waits for the one place that a worker has for such jobs."""
    async with full(start, note):
        job = await note.enqueue()
        observer.hset("arq:started", job.job_id, "3:" + "x" * 28)
        reason = await ask(job)
    assert reason.kind is ReasonKind.SUSPECT
    assert reason.sentence.startswith("3 workers have died while they ran it")


async def test_a_suspect_beside_another_one(ask: Ask, start: StartWorker, observer: Any) -> None:
    """The worker has free slots, and puts it off again and again."""
    async with start(hold, note, concurrency=4):
        jobs = []
        for number in range(2):
            jobs.append(await hold.using(job_id=f"suspect-{number}", delay=1).enqueue(30))
            observer.hset("arq:started", jobs[-1].job_id, "3:" + "x" * 28)
        await eventually(jobs[0].status, equals=JobStatus.in_progress)
        await asyncio.sleep(0.3)
        running = [await job.status() for job in jobs].count(JobStatus.in_progress)
        assert running == 1
        assert (await ask(jobs[1])).kind is ReasonKind.SUSPECT
        await jobs[0].abort(timeout=AT_ONCE)


async def test_a_job_that_kills_each_worker_is_a_suspect_although_no_worker_is_left(ask: Ask, observer: Any) -> None:
    """It is the reason why there is none. The next step is the command that aborts it."""
    job = await note.enqueue()
    observer.hset("arq:started", job.job_id, "2:" + "x" * 28)
    reason = await ask(job)
    assert reason.kind is ReasonKind.SUSPECT
    assert reason.sentence == (f"2 workers have died while they ran it, and no worker serves its queue {QUEUE} now")
    assert f"abort it: tandem jobs abort {job.job_id} --queue {QUEUE};" in reason.next_step


async def test_a_row_that_is_due_later_is_published_when_it_is_due(ask: Ask, observer: Any) -> None:
    """The next step does not promise it within seconds, and is the command that runs it now."""
    async with db.scope():
        job = await note.using(delay=3600).enqueue()
    observer.flushdb()
    reason = await ask(job)
    assert reason.kind is ReasonKind.NOT_PUBLISHED
    assert reason.next_step.endswith(f"; or run it now: tandem jobs run-now {job.job_id}")
    assert "seconds" not in reason.next_step


async def test_a_job_of_a_queue_that_is_not_searched(ask: Ask) -> None:
    """Its arguments are in Redis, under a key that all queues share: only its queue is to be named."""
    job = await note.using(queue="other").enqueue()
    reason = await ask(job)
    assert (reason.kind, reason.task) == (ReasonKind.UNKNOWN, note.name)
    assert reason.sentence == f"it is in another queue than {QUEUE}: Redis has its arguments"
    assert reason.next_step.startswith(f"name its queue: tandem jobs why {job.job_id} --queue NAME")
    named = await why(job.job_id, queue="other", deployment=ask.deployment)
    assert named.kind is ReasonKind.NO_WORKER


async def test_a_name_with_blanks_is_quoted_in_the_next_step(ask: Ask) -> None:
    """As the next step is typed into a shell."""
    job = await note.using(queue="my mail").enqueue()
    reason = await why(job.job_id, queue="my mail", deployment=ask.deployment)
    assert reason.next_step == "start one: WORKER_QUEUES='my mail' python -m worker run"


async def test_a_job_that_has_expired(ask: Ask, start: StartWorker, observer: Any) -> None:
    """Before a worker has found that out, and after that."""
    job = await note.using(expires=0.1).enqueue()
    await eventually(lambda: not observer.exists(f"arq:job:{job.job_id}"))
    reason = await ask(job)
    assert reason.kind is ReasonKind.EXPIRED
    assert reason.sentence == "its arguments have expired: it ends as expired once a worker claims it"
    async with start(note):
        await eventually(job.status, equals=JobStatus.complete)
    assert (await ask(job)).kind is ReasonKind.EXPIRED


async def test_an_expired_job_without_a_ledger(without_ledger: Deployment, start: StartWorker, observer: Any) -> None:
    """Its kept result says so."""
    job = await note.using(expires=0.1).enqueue()
    await eventually(lambda: not observer.exists(f"arq:job:{job.job_id}"))
    async with start(note, ledger=None):
        await eventually(job.status, equals=JobStatus.complete)
    assert (await why(job.job_id, deployment=without_ledger)).kind is ReasonKind.EXPIRED


async def test_a_job_with_a_row_does_not_expire_with_its_payload(ask: Ask, observer: Any) -> None:
    """A worker gets the payload from the row."""
    async with db.scope():
        job = await note.enqueue()
    observer.delete(f"arq:job:{job.job_id}")
    assert (await ask(job)).kind is ReasonKind.NO_WORKER


async def test_an_aborted_job(ask: Ask, start: StartWorker) -> None:
    """When the abort is requested, and when the job has ended."""
    job = await note.enqueue()
    aborting = asyncio.create_task(job.abort())
    requested = await ask.until(job, ReasonKind.ABORTED)
    assert requested.sentence.startswith("an abort was requested")
    async with start(note):
        assert await asyncio.wait_for(aborting, AT_ONCE)
    reason = await ask(job)
    assert reason.kind is ReasonKind.ABORTED
    assert reason.sentence.startswith("it was aborted, at ")


async def test_a_failed_job_and_a_discarded_one(ask: Ask, start: StartWorker) -> None:
    """The next step of a failed job is the command that runs it again."""
    async with start(fail):
        job = await fail.enqueue()
        await eventually(job.status, equals=JobStatus.complete)
    reason = await ask(job)
    assert reason.kind is ReasonKind.FAILED
    assert reason.sentence.endswith("RuntimeError: no such mailbox")
    assert reason.next_step == f"tandem jobs retry {job.job_id}"
    admin = JobAdmin()
    await admin.discard(await admin.keys(JobFilter()))
    assert (await ask(job)).kind is ReasonKind.DISCARDED


async def test_a_job_that_is_done(ask: Ask, start: StartWorker) -> None:
    """With a row, with a kept result, and with neither: then among the latest ended jobs."""

    @task(name="forgets", keep_result=0)
    async def forgets() -> None:
        pass

    async with start(row, note, forgets):
        jobs = [await row.enqueue(), await note.enqueue(), await forgets.enqueue()]
        for job in jobs:
            reason = await ask.until(job, ReasonKind.DONE)
            assert reason.sentence.startswith("it is done, at ")
            assert reason.evidence["tries"] == 1


async def test_a_job_that_runs(ask: Ask, start: StartWorker) -> None:
    """Which worker runs it, and since when."""
    async with full(start) as held:
        await eventually(WorkerAdmin(ask.deployment).list)
        reason = await ask.until(held, ReasonKind.RUNNING)

        async def is_told() -> Any:
            return (await ask(held)).evidence.get("worker")

        assert await eventually(is_told) == "w"
        assert reason.next_step == ""


async def test_a_job_that_nobody_knows(ask: Ask) -> None:
    """The evidence tells where it was searched for."""
    reason = await ask("nowhere")
    assert reason.kind is ReasonKind.UNKNOWN
    assert reason.evidence == {"queues": [QUEUE], "ledger": True}


async def test_a_job_is_found_in_the_queue_that_its_row_names(ask: Ask) -> None:
    """Although the process that asks does not know this queue."""
    async with db.scope():
        job = await note.using(queue="mail").enqueue()
    reason = await ask(job)
    assert (reason.kind, reason.queue) == (ReasonKind.NO_WORKER, "mail")


async def test_an_earlier_job_of_an_id_is_told_apart(deployment: Deployment, start: StartWorker) -> None:
    """By its enqueue time."""
    async with start(row):
        first = await row.using(job_id="same").enqueue()
        assert await first.result(timeout=AT_ONCE) == "done"
    await deployment.broker.redis.delete("arq:result:same")
    second = await row.using(job_id="same", delay=60).enqueue()
    assert first.enqueued_at != second.enqueued_at
    earlier = await why("same", enqueued_at=first.enqueued_at, deployment=deployment)
    later = await why("same", enqueued_at=second.enqueued_at, deployment=deployment)
    assert (earlier.kind, later.kind) == (ReasonKind.DONE, ReasonKind.SCHEDULED)


def test_every_reason_has_a_test() -> None:
    """The list is closed."""
    source = Path(__file__).read_text()
    assert [kind for kind in ReasonKind if f"ReasonKind.{kind.name}" not in source] == []

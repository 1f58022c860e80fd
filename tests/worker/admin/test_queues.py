"""Queues: paused, resumed, drained and purged for all workers, at once, also when Redis loses everything."""

import asyncio
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest

import db
from tests.servers import Observer
from tests.waiting import AT_ONCE, eventually
from tests.worker.admin.conftest import ACTOR
from tests.worker.conftest import RoundTrips
from tests.worker.engine.conftest import StartWorker
from worker import Broker, JobFailed, JobStatus, Retry, task
from worker.admin.audit import AuditLog
from worker.admin.deployment import Deployment
from worker.admin.queues import PurgeProgress, QueueAdmin, QueueState
from worker.control.queue_pauses import QueuePauses

QUEUE = "arq:queue"
RUNS: list[str] = []

pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    RUNS.clear()


@pytest.fixture
def queues(deployment: Deployment) -> QueueAdmin:
    return QueueAdmin(deployment)


@task
async def note(name: str) -> str:
    RUNS.append(name)
    return name


@task
async def hold(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "held"


async def a_while() -> None:
    """Long enough for two claims by poll."""
    await asyncio.sleep(1.2)


class TestPause:
    async def test_no_job_of_a_paused_queue_starts_on_any_worker_until_it_is_resumed(
        self, queues: QueueAdmin, start: StartWorker
    ) -> None:
        """Enqueueing goes on. After `resume` the jobs start at once."""
        await queues.pause(QUEUE, actor=ACTOR)
        async with start(note), start(note, id="v"):
            jobs = [await note.enqueue(f"n{number}") for number in range(5)]
            await a_while()
            assert RUNS == []
            assert await jobs[0].status() is JobStatus.queued
            assert await queues.resume(QUEUE, actor=ACTOR)
            await eventually(lambda: len(RUNS) == 5, timeout=AT_ONCE)
        assert not await queues.resume(QUEUE, actor=ACTOR)

    async def test_running_jobs_go_on_and_other_queues_too(self, queues: QueueAdmin, start: StartWorker) -> None:
        """A pause holds from the next claim on, for one queue."""
        async with start(note, hold, queues=f"{QUEUE},other"):
            running = await hold.enqueue(0.8)
            await eventually(running.status, equals=JobStatus.in_progress)
            await queues.pause(QUEUE, actor=ACTOR)
            elsewhere = await note.using(queue="other").enqueue("elsewhere")
            assert await elsewhere.result(timeout=AT_ONCE) == "elsewhere"
            assert await running.result(timeout=AT_ONCE) == "held"

    async def test_a_pause_with_an_end_ends_by_itself(self, queues: QueueAdmin, start: StartWorker) -> None:
        """In Redis and in the database."""
        await queues.pause(QUEUE, actor=ACTOR, until=datetime.now(UTC) + timedelta(seconds=1))
        async with start(note):
            job = await note.enqueue("n")
            assert (await queues.get(QUEUE)).state is QueueState.PAUSED
            assert RUNS == []
            assert await job.result(timeout=AT_ONCE) == "n"
            assert (await queues.get(QUEUE)).pause is None
        assert not await queues.resume(QUEUE, actor=ACTOR)

    @pytest.mark.parametrize("until", [datetime(2040, 1, 1), datetime(2020, 1, 1, tzinfo=UTC)])  # noqa: DTZ001
    async def test_an_end_without_a_zone_or_in_the_past_is_refused(self, queues: QueueAdmin, until: datetime) -> None:
        """Nothing is paused."""
        with pytest.raises(ValueError, match="until="):
            await queues.pause(QUEUE, actor=ACTOR, until=until)
        assert (await queues.get(QUEUE)).pause is None

    async def test_an_aborted_job_of_a_paused_queue_ends_at_once(
        self, queues: QueueAdmin, start: StartWorker, observer: Any
    ) -> None:
        """It is the only one that is claimed: it does not run."""
        await queues.pause(QUEUE, actor=ACTOR)
        async with start(note):
            other, aborted = await note.enqueue("other"), await note.enqueue("aborted")
            assert await aborted.abort(timeout=AT_ONCE)
            assert RUNS == []
            assert await other.status() is JobStatus.queued
            assert observer.zcard(QUEUE) == 1

    async def test_the_list_tells_who_has_paused_a_queue_and_when(self, queues: QueueAdmin) -> None:
        """A paused queue is listed although the process does not know it."""
        until = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
        await queues.pause("mail", actor=ACTOR, until=until)
        ours, mail = await queues.list()
        assert (ours.name, ours.state, ours.pause) == (QUEUE, QueueState.ACTIVE, None)
        assert mail.pause is not None
        assert (mail.name, mail.state) == ("mail", QueueState.PAUSED)
        assert (mail.pause.actor, mail.pause.until, mail.pause.is_durable) == (ACTOR, until, True)
        assert abs(datetime.now(UTC) - mail.pause.since) < timedelta(seconds=5)


class TestLostRedis:
    async def test_a_pause_survives_a_redis_that_loses_everything(
        self, queues: QueueAdmin, start: StartWorker, observer: Any
    ) -> None:
        """No job starts between the loss and the moment when a worker has restored the pause."""
        await queues.pause(QUEUE, actor=ACTOR)
        async with start(note), start(note, id="v"):
            await eventually(lambda: observer.exists(f"{QUEUE}:epoch"))
            await a_while()
            for number in range(3):
                async with db.scope():
                    await note.enqueue(f"row {number}")
                observer.flushdb()
                await note.enqueue(f"no row {number}")
                await eventually(lambda: observer.exists(f"{QUEUE}:paused"))
                await eventually(partial(observer.zcard, QUEUE), equals=number + 2)
                assert RUNS == []
            await queues.resume(QUEUE, actor=ACTOR)
            await eventually(lambda: len(RUNS) == 4, timeout=AT_ONCE)

    async def test_a_worker_that_starts_after_the_loss_restores_the_pause_before_it_claims(
        self, queues: QueueAdmin, start: StartWorker, observer: Any
    ) -> None:
        """No other worker need be there."""
        await queues.pause(QUEUE, actor=ACTOR)
        observer.flushdb()
        job = await note.enqueue("n")
        async with start(note):
            await eventually(lambda: observer.exists(f"{QUEUE}:paused"))
            await a_while()
            assert await job.status() is JobStatus.queued
        assert RUNS == []

    async def test_a_copy_that_differs_from_its_row_is_put_right(
        self, queues: QueueAdmin, observer: Any, start: StartWorker
    ) -> None:
        """As after a process that died between both."""
        await queues.pause(QUEUE, actor=ACTOR)
        right = observer.get(f"{QUEUE}:paused")
        observer.delete(f"{QUEUE}:paused")
        observer.set("other:paused", "-inf {}")
        async with start(note, queues=f"{QUEUE},other"):
            await eventually(lambda: observer.get(f"{QUEUE}:paused") == right)
            await eventually(lambda: not observer.exists("other:paused"))

    async def test_of_a_pause_and_a_resume_at_the_same_time_redis_gets_what_the_row_says(
        self, queues: QueueAdmin, deployment: Deployment, observer: Any, postgres: Observer
    ) -> None:
        """However many act, and restore meanwhile."""
        pauses = QueuePauses(deployment.broker, deployment.ledger)
        for _ in range(20):
            acts = [queues.pause(QUEUE, actor=ACTOR), queues.resume(QUEUE, actor=ACTOR), pauses.restore([QUEUE])]
            await asyncio.gather(*acts)
            is_paused = bool(await postgres.fetchval("SELECT count(*) FROM tandem_jobs_pauses"))
            assert bool(observer.exists(f"{QUEUE}:paused")) == is_paused

    async def test_without_a_ledger_a_pause_is_kept_in_redis_alone(
        self, without_ledger: Deployment, start: StartWorker
    ) -> None:
        """It holds, and says that it does not survive."""
        queues = QueueAdmin(without_ledger)
        assert not (await queues.pause(QUEUE, actor=ACTOR)).is_durable
        async with start(note, ledger=None):
            job = await note.enqueue("n")
            await a_while()
            assert RUNS == []
            assert await queues.resume(QUEUE, actor=ACTOR)
            assert await job.result(timeout=AT_ONCE) == "n"

    async def test_workers_with_a_ledger_obey_a_pause_that_was_made_without_one(
        self, without_ledger: Deployment, queues: QueueAdmin, start: StartWorker
    ) -> None:
        """A process with a ledger can end it, too."""
        await QueueAdmin(without_ledger).pause(QUEUE, actor=ACTOR)
        async with start(note):
            job = await note.enqueue("n")
            await a_while()
            assert RUNS == []
            pause = (await queues.get(QUEUE)).pause
            assert pause is not None
            assert not pause.is_durable
            assert await queues.resume(QUEUE, actor=ACTOR)
            assert await job.result(timeout=AT_ONCE) == "n"


class TestDrain:
    async def test_a_drained_queue_works_off_what_is_due_and_starts_nothing_later(
        self, queues: QueueAdmin, start: StartWorker
    ) -> None:
        """Then it is paused. Jobs that were deferred or fail and are tried again wait, too."""
        for number in range(3):
            await note.enqueue(f"before {number}")
        await note.using(delay=0.1).enqueue("deferred")
        await queues.drain(QUEUE, actor=ACTOR)
        assert (await queues.get(QUEUE)).state is QueueState.DRAINING
        await note.enqueue("after")
        async with start(note):
            await eventually(lambda: len(RUNS) == 3, timeout=AT_ONCE)
            await a_while()
            assert sorted(RUNS) == ["before 0", "before 1", "before 2"]
            info = await queues.get(QUEUE)
            assert (info.state, info.depth) == (QueueState.PAUSED, 2)
            assert info.pause is not None
            assert info.pause.drains
            await queues.resume(QUEUE, actor=ACTOR)
            await eventually(lambda: len(RUNS) == 5, timeout=AT_ONCE)

    async def test_a_retry_after_the_drain_waits(self, queues: QueueAdmin, start: StartWorker) -> None:
        """It is due later than the drain."""

        @task
        async def again() -> None:
            RUNS.append("again")
            raise Retry

        job = await again.enqueue()
        await queues.drain(QUEUE, actor=ACTOR)
        async with start(again):
            await eventually(lambda: RUNS)
            await a_while()
            assert RUNS == ["again"]
            assert await job.status() is JobStatus.queued


class TestPurge:
    async def test_a_purge_removes_what_waits_and_leaves_what_runs(
        self, queues: QueueAdmin, start: StartWorker, observer: Any, postgres: Observer
    ) -> None:
        """Pending rows become discarded, also those that were not published. No key of a removed job is left."""
        async with start(hold, concurrency=1):
            running = await hold.enqueue(60)
            await eventually(running.status, equals=JobStatus.in_progress)
            plain = [await note.enqueue(f"n{number}") for number in range(1203)]
            later = await note.using(delay=60).enqueue("later")
            async with db.scope():
                rows = [await note.enqueue(f"row {number}") for number in range(3)]
            async with db.scope():
                unpublished = await note.enqueue("unpublished")
            await eventually(partial(observer.zscore, QUEUE, unpublished.job_id))
            observer.zrem(QUEUE, unpublished.job_id)
            await eventually(partial(queues.waiting, QUEUE), equals=len(plain) + 1 + len(rows))
            seen = [progress async for progress in queues.purge(QUEUE, actor=ACTOR)]
            assert seen[0] == PurgeProgress(1207, 0)
            assert seen[-1] == PurgeProgress(1207, 1208, is_over=True)
            assert [each.removed for each in seen] == sorted(each.removed for each in seen)
            assert observer.zrange(QUEUE, 0, -1) == [running.job_id]
            assert await running.status() is JobStatus.in_progress
            assert await running.abort(timeout=AT_ONCE)
        assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs WHERE state = 'discarded'") == 4
        assert not [key for key in observer.keys("arq:*") if later.job_id in key or rows[0].job_id in key]
        with pytest.raises(JobFailed, match="its queue was purged"):
            await rows[0].result(timeout=AT_ONCE)

    async def test_jobs_that_are_enqueued_after_the_purge_has_begun_stay(
        self, queues: QueueAdmin, observer: Any
    ) -> None:
        """A purge of a busy queue comes to an end."""
        for number in range(3):
            await note.enqueue(f"n{number}")
        purge = queues.purge(QUEUE, actor=ACTOR)
        assert await anext(purge) == PurgeProgress(3, 0)
        await asyncio.sleep(0.01)
        new = await note.enqueue("new")
        assert [progress.removed async for progress in purge] == [3, 3]
        assert observer.zrange(QUEUE, 0, -1) == [new.job_id]

    async def test_a_purge_without_a_ledger_removes_jobs_from_redis(
        self, without_ledger: Deployment, observer: Any
    ) -> None:
        """There are no rows then."""
        await note.enqueue("n")
        seen = [progress async for progress in QueueAdmin(without_ledger).purge(QUEUE, actor=ACTOR)]
        assert seen[-1].removed == 1
        assert observer.keys("*") == []

    async def test_a_purge_that_is_stopped_says_so(self, queues: QueueAdmin, deployment: Deployment) -> None:
        """The audit row tells how far it came."""
        await note.enqueue("n")
        purge = queues.purge(QUEUE, actor=ACTOR)
        await anext(purge)
        await purge.aclose()  # type: ignore[attr-defined]  # it is a generator
        (entry,) = await AuditLog(deployment).read()
        assert entry.outcome == "stopped after 0 jobs"


class TestAudit:
    async def test_each_action_is_written_down_with_its_effect(
        self, queues: QueueAdmin, deployment: Deployment
    ) -> None:
        """Who, when, what, which; the latest first, page by page."""
        await queues.pause(QUEUE, actor="ann", until=datetime.now(UTC) + timedelta(hours=1))
        await queues.drain("mail", actor="bob")
        await queues.resume(QUEUE, actor="bob")
        log = AuditLog(deployment)
        entries = await log.read(limit=2)
        assert [(each.actor, each.action, each.subject) for each in entries] == [
            ("bob", "queue.resume", QUEUE),
            ("bob", "queue.drain", "mail"),
        ]
        (first,) = await log.read(before=entries[-1].id)
        assert (first.actor, first.action, first.outcome) == ("ann", "queue.pause", "done")
        assert list(first.detail) == ["until"]
        assert abs(datetime.now(UTC) - first.at) < timedelta(seconds=5)
        assert len(await log.read(actor="bob")) == len(await log.read(subject=QUEUE)) == 2
        assert len(await log.read(action="queue.")) == 3
        assert await log.read(action="job.") == []

    async def test_a_pause_whose_row_cannot_be_written_leaves_no_trace(
        self, queues: QueueAdmin, postgres: Observer, observer: Any
    ) -> None:
        """The audit row and its effect are one transaction."""
        await postgres.execute("ALTER TABLE tandem_jobs_audit ADD CONSTRAINT never CHECK (actor <> 'ann')")
        with pytest.raises(Exception, match="never"):
            await queues.pause(QUEUE, actor="ann")
        assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs_pauses") == 0
        assert not observer.exists(f"{QUEUE}:paused")

    async def test_without_a_ledger_there_are_no_entries(self, without_ledger: Deployment) -> None:
        """Actions are only logged."""
        await QueueAdmin(without_ledger).pause(QUEUE, actor=ACTOR)
        assert await AuditLog(without_ledger).read() == []


async def test_a_claim_of_an_unpaused_queue_sends_and_runs_no_more_commands(broker: Broker, observer: Any) -> None:
    """Without a due job, neither aborts nor a pause matter."""
    await broker.enqueue([])
    await broker.claim(QUEUE, "t" * 28, 1000, 1)
    observer.config_resetstat()
    trips = RoundTrips(observer)
    await broker.claim(QUEUE, "t" * 28, 1000, 1)
    stats = observer.info("commandstats")
    assert trips() == 1
    assert {name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items() if "config" not in name} == {
        "evalsha": 1,
        "time": 1,
        "zrange": 1,
        **({"info": 1} if "cmdstat_info" in stats else {}),
    }

"""On a Redis Cluster, each hash-tagged queue has all that people set and see on its own node."""

import asyncio
from typing import Any

import db
from tests.waiting import AT_ONCE, eventually
from tests.worker.admin.conftest import ACTOR
from tests.worker.broker.test_connection import cluster, nodes
from tests.worker.engine.conftest import StartWorker
from worker import Broker, JobContext, JobStatus, injected, set_default_broker, task
from worker.admin.deployment import Deployment
from worker.admin.job_actions import JobActions
from worker.admin.queues import QueueAdmin, QueueState
from worker.admin.why import ReasonKind, why
from worker.admin.workers import WorkerAdmin
from worker.ledger import Ledger
from worker.metrics.records import WorkerState

__all__ = ["cluster", "nodes"]  # fixtures

QUEUES = ("{mail}", "{news}", "{print}")


@task
async def note(name: str, job: JobContext = injected) -> str:
    await job.progress(1, 1, name)
    return name


async def test_queues_of_a_cluster_are_paused_purged_and_explained(
    cluster: str, start: StartWorker, database: db.Database[Any]
) -> None:
    """Each on its node, and commands reach the worker through any of them."""
    assert database.url is not None
    broker = Broker(cluster, name=QUEUES[0])
    set_default_broker(broker)
    deployment = Deployment(broker, Ledger(), QUEUES)
    queues, workers, actions = QueueAdmin(deployment), WorkerAdmin(deployment), JobActions(deployment)
    try:
        async with start(note, url=cluster, queue=QUEUES[0], queues=",".join(QUEUES)):
            for name in QUEUES:
                await queues.pause(name, actor=ACTOR)
            assert {info.state for info in await queues.list()} == {QueueState.PAUSED}
            jobs = [await note.using(queue=name).enqueue(name) for name in QUEUES]
            await asyncio.sleep(1.2)
            assert {await job.status() for job in jobs} == {JobStatus.queued}
            reason = await why(jobs[1].job_id, deployment=deployment)
            assert (reason.kind, reason.queue) == (ReasonKind.PAUSED, QUEUES[1])
            assert [progress async for progress in queues.purge(QUEUES[2], actor=ACTOR)][-1].removed == 1
            for name in QUEUES:
                assert await queues.resume(name, actor=ACTOR)
            (progress,) = [progress async for progress in jobs[1].progress()]
            assert progress.note == QUEUES[1]
            assert [await job.result(timeout=AT_ONCE) for job in jobs[:2]] == list(QUEUES[:2])
            later = await note.using(queue=QUEUES[2], delay=60).enqueue("later")
            await actions.run_now(later.job_id, actor=ACTOR)
            assert await later.result(timeout=AT_ONCE) == "later"
            await eventually(workers.list)
            assert await workers.quiet("w", actor=ACTOR) == 1

            async def states() -> list[WorkerState]:
                return [each.state for each in await workers.list()]

            await eventually(states, equals=[WorkerState.QUIET])
    finally:
        await broker.close()

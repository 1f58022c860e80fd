"""The origin of jobs: the job that enqueued them and its trace, in the message and in the row."""

import asyncio
import json
from typing import Any

import pytest
import redis

import db
from tests.servers import Observer
from tests.worker.engine.conftest import StartWorker
from worker import Broker, JobContext, current_job, task
from worker.broker.records import now_ms
from worker.client.origin import current_origin
from worker.ledger import Ledger
from worker.ledger.admin import JobAdmin
from worker.message import Envelope
from worker.new_job import NewJob
from worker.process.arq_codec import serialize_with_origin

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CHILD: dict[str, str] = {}

pytestmark = pytest.mark.usefixtures("broker", "database")


@task
async def child(how: str) -> None:
    CHILD[how] = current_job().parent or "none"


@task
def sync_child(how: str) -> None:
    CHILD[how] = current_job().parent or "none"


@task
async def family(session: db.AsyncSession, job: JobContext) -> dict[str, str]:
    """Enqueue in each way that there is, and return the ids by way."""
    ids = {"scope": await child.enqueue("scope")}
    (ids["many"],) = await child.enqueue_many([{"how": "many"}])
    ids["named"] = await child.using(job_id=f"named-{job.job_id}").enqueue("named")
    ids["session"] = await child.using(session=session).enqueue("session")
    ids["direct"] = await child.using(transactional=False).enqueue("direct")
    ids["thread"] = await asyncio.to_thread(child.enqueue_sync, "thread")
    async with asyncio.TaskGroup() as group:
        ids["group"] = await group.create_task(sync_child.enqueue("group"))
    async with db.scope():
        ids["inner scope"] = await child.enqueue("inner scope")
    return {how: each.job_id for how, each in ids.items()}


@pytest.fixture(autouse=True)
def _no_children() -> None:
    CHILD.clear()


async def enqueue_family(broker: Broker, **origin: Any) -> str:
    payload = Envelope(family.name, now_ms(), **origin).around(b"{}")
    await broker.enqueue([NewJob("mother", payload, family.name, broker.name, now_ms(), expires=60_000)])
    return "mother"


class TestParent:
    async def test_each_way_to_enqueue_in_a_task_carries_the_tasks_job_as_parent(
        self, start: StartWorker, broker: Broker, observer: redis.Redis
    ) -> None:
        """In the message and in the row, in async and in plain tasks, in threads and in child tasks."""
        mother = await enqueue_family(broker)
        async with start(family, child, sync_child, ledger=Ledger()) as one:
            await one.idle()
        raw: Any = observer.get(f"arq:result:{mother}")
        ids = json.loads(raw)["r"]
        assert dict.fromkeys(ids, mother) == CHILD
        for how, job_id in ids.items():
            assert json.loads(observer.get(f"arq:result:{job_id}") or "{}")["parent"] == mother  # type: ignore[arg-type]
            rows = await JobAdmin().all_of(job_id)
            assert [row["parent"] for row in rows] == ([] if how == "direct" else [mother])

    async def test_a_job_that_no_job_enqueues_has_no_parent(self, start: StartWorker, postgres: Observer) -> None:
        """Neither one of a request, nor one that is enqueued after a job has ended."""
        async with start(child, ledger=Ledger()) as one:
            async with db.scope():
                job = await child.enqueue("request")
            await one.idle()
        info = await job.info()
        assert info is not None
        assert (CHILD, info.parent, info.traceparent) == ({"request": "none"}, None, None)
        assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs WHERE parent IS NULL") == 1

    async def test_arqs_client_in_a_task_carries_the_parent(self, start: StartWorker) -> None:
        """The codec of `ctx["redis"]` writes it into the job, before the enqueue time."""
        seen: list[bytes] = []

        @task
        async def enqueues_by_arq() -> None:
            seen.append(serialize_with_origin({"t": None, "f": "child", "a": [], "k": {}, "et": 5}))

        async with start(enqueues_by_arq) as one:
            job = await enqueues_by_arq.enqueue()
            await one.idle()
        expected = b'{"t":null,"f":"child","a":[],"k":{},"parent":"%b","et":5}' % job.job_id.encode()
        assert seen == [expected]
        assert serialize_with_origin({"f": "child", "a": [], "k": {}, "et": 5}) == b'{"f":"child","a":[],"k":{},"et":5}'

    async def test_an_id_that_no_text_can_hold_does_not_fail_the_children(
        self, start: StartWorker, broker: Broker
    ) -> None:
        """PostgreSQL stores no NUL. The children have no parent then."""

        @task(name="mother")
        async def mother() -> None:
            async with db.scope():
                await child.enqueue("odd")

        payload = Envelope("mother", now_ms()).around(b"{}")
        async with start(mother, child, ledger=Ledger()) as one:
            await broker.enqueue([NewJob("a\0b", payload, "mother", broker.name, now_ms(), expires=60_000)])
            await one.idle()
        assert CHILD == {"odd": "none"}


class TestTraceparent:
    async def test_a_jobs_children_stay_in_its_trace(
        self, start: StartWorker, broker: Broker, observer: redis.Redis
    ) -> None:
        """Also where OpenTelemetry is not installed: the worker hands on what it was given."""
        mother = await enqueue_family(broker, parent="grandmother", traceparent=TRACE)
        async with start(family, child, sync_child, ledger=Ledger()) as one:
            await one.idle()
        result = json.loads(observer.get(f"arq:result:{mother}") or "{}")  # type: ignore[arg-type]
        assert (result["parent"], result["traceparent"]) == ("grandmother", TRACE)
        for how, job_id in result["r"].items():
            for row in await JobAdmin().all_of(job_id):
                assert (row["parent"], row["traceparent"]) == (mother, TRACE), how
        (row,) = await JobAdmin().all_of(mother)
        assert (row["parent"], row["traceparent"], row["state"]) == ("grandmother", TRACE, "done")

    async def test_a_job_that_the_relay_publishes_keeps_its_origin(
        self, start: StartWorker, observer: redis.Redis, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Redis loses everything after the COMMIT; the row has the whole message."""
        monkeypatch.setattr("worker.client.origin.running_job", lambda: _Mother)
        async with db.scope():
            job = await child.enqueue("relay")
        monkeypatch.undo()
        observer.flushall()
        async with start(child, ledger=Ledger()) as one:
            await one.idle()
        assert CHILD == {"relay": "mother"}
        info = await job.info()
        assert info is not None
        assert (info.parent, info.traceparent) == ("mother", TRACE)


class _Mother:
    job_id, traceparent = "mother", TRACE


def test_outside_of_a_job_there_is_no_origin() -> None:
    """Neither a parent nor a trace."""
    assert current_origin() == (None, None)

"""What a worker measures is what happened: in Redis, in its record, and in Prometheus' form, on real servers."""

import asyncio
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import text

import db
from tests.conftest import StartRedis
from tests.proxy import Proxy
from tests.servers import Observer
from tests.waiting import eventually
from tests.worker.conftest import Note
from tests.worker.engine.conftest import StartWorker, Worker
from worker import Broker, JobContext, Retry, cron, set_default_broker, task
from worker.broker.metrics import RESOLUTIONS
from worker.broker.scripts import Script
from worker.client.enqueued import enqueued_counts
from worker.ledger import Ledger
from worker.message import encode
from worker.metrics.meter import OTHER_TASKS
from worker.metrics.prometheus import EnqueuedCollector, WorkerCollector
from worker.metrics.reader import DAY, HOUR, MetricsReader, Series
from worker.metrics.records import WorkerState
from worker.new_job import NewJob

QUEUE = "arq:queue"


@task
async def succeed(milliseconds: int = 0) -> None:
    await asyncio.sleep(milliseconds / 1000)


@task
async def fail() -> None:
    raise ValueError("no\nway \x1b[2J")


@task(max_tries=3)
async def retry_twice(job: JobContext) -> None:
    if job.attempt < 3:
        raise Retry(defer=0.01)


@task
async def hold() -> str:
    await asyncio.sleep(60)
    return "held"


@task
async def write(session: db.AsyncSession, words: str) -> None:
    session.add(Note(words=words))


_conflicts = iter(range(100))


@task
async def conflict_twice(session: db.AsyncSession) -> None:
    if next(_conflicts) < 2:
        await session.execute(text("DO $$ BEGIN RAISE EXCEPTION 'busy' USING ERRCODE = '40001'; END $$"))


@cron("0 0 1 1 *")
async def yearly() -> None:
    """Runs on the first of January, and when it is enqueued."""


def scraped(worker: Worker) -> dict[str, float]:
    """The samples of the worker, as Prometheus reads them: ``name{label="value"}``, without those that are 0."""
    registry = CollectorRegistry()
    registry.register(WorkerCollector(worker.engine.jobs.meter, worker.engine.report.snapshot))
    samples = {}
    for family in text_string_to_metric_families(generate_latest(registry).decode()):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            if sample.value:
                samples[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return samples


async def series(worker: Worker, task_name: str | None = None) -> Series:
    """What Redis has of this hour, after the worker has told it everything."""
    await worker.engine._reporter.report()
    (found,) = await MetricsReader(worker.broker).throughput(HOUR, [QUEUE], task_name)
    return found


class TestOutcomes:
    async def test_each_outcome_is_counted_as_often_as_it_happened(self, start: StartWorker, observer: Any) -> None:
        """By task and for the queue, in minutes and in ten minutes, and for Prometheus."""
        async with start(succeed, fail, retry_twice, hold) as worker:
            await succeed.enqueue_many([{}] * 300)
            await fail.enqueue_many([{}] * 7)
            await retry_twice.enqueue_many([{}] * 5)
            await worker.idle()
            aborted = await hold.enqueue()
            await eventually(lambda: worker.engine.jobs.executions.running)
            assert await aborted.abort(timeout=10)
            expired = await succeed.using(delay=0.5).enqueue()
            observer.delete(f"arq:job:{expired.job_id}")  # as Redis does when it expires
            total = {"completed": 305, "failed": 7, "retried": 10, "aborted": 1, "expired": 1}
            await eventually(lambda: _outcomes(worker), equals=total)
            assert (await series(worker, succeed.name)).total.outcomes == {"completed": 300}
            assert (await series(worker, retry_twice.name)).total.outcomes == {"completed": 5, "retried": 10}
            (day,) = await MetricsReader(worker.broker).throughput(DAY, [QUEUE])
            assert day.total.outcomes == total
            by_task = await MetricsReader(worker.broker).by_task(HOUR, [QUEUE])
            assert {each.task: each.total.finished for each in by_task} == {
                succeed.name: 300,
                fail.name: 7,
                retry_twice.name: 5,
                hold.name: 1,
                OTHER_TASKS: 1,  # an expired job says nothing of itself
            }
            samples = scraped(worker)
            finished, again = "tandem_jobs_finished_total", "tandem_jobs_put_back_total"
            for name, count in (
                (f'{finished}{{outcome="completed",queue="arq:queue",task="succeed"}}', 300),
                (f'{finished}{{outcome="failed",queue="arq:queue",task="fail"}}', 7),
                (f'{finished}{{outcome="aborted",queue="arq:queue",task="hold"}}', 1),
                (f'{again}{{outcome="retried",queue="arq:queue",task="retry_twice"}}', 10),
                ('tandem_job_duration_seconds_count{queue="arq:queue",task="retry_twice"}', 15),
            ):
                assert samples[name] == count, name

    async def test_waiting_and_running_times_are_those_of_the_jobs(self, start: StartWorker) -> None:
        """To the precision of a histogram's buckets. A deferred job waits from its due time on."""
        async with start(succeed, concurrency=1) as worker:
            await succeed.using(delay=1).enqueue()
            await worker.idle()
            await succeed.enqueue_many([{"milliseconds": 130}] * 4)
            await worker.idle()
            total = (await series(worker)).total
            assert (total.ran.total, total.waited.total) == (5, 5)
            assert 0.1 <= (total.ran.p50 or 0) <= 0.2
            assert sum(total.waited.counts[:6]) >= 2  # 50 ms at most: the deferred job, and the first of the four
            assert sum(total.waited.counts[6:]) >= 2  # the last ones waited for 200 and 300 ms
            samples = scraped(worker)
            labels = 'queue="arq:queue",task="succeed"'
            assert 0.4 <= samples[f"tandem_job_duration_seconds_sum{{{labels}}}"] < 2
            assert 0.6 <= samples[f"tandem_job_wait_seconds_sum{{{labels}}}"] < 3
            assert samples[f'tandem_job_duration_seconds_bucket{{le="0.2",{labels}}}'] >= 4
            assert samples[f'tandem_job_duration_seconds_bucket{{le="+Inf",{labels}}}'] == 5
            assert total.busy in (0, 1)  # whole seconds; the rest is told later

    async def test_tasks_that_the_registry_does_not_list_share_one_name(
        self, start: StartWorker, broker: Broker
    ) -> None:
        """Their names come from outside, and there may be any number of them."""
        jobs = [NewJob(f"x{n}", encode(f"evil-{n}", b"{}", 0), f"evil-{n}", QUEUE, 0) for n in range(50)]
        async with start(succeed, unknown_for=0.0) as worker:
            await broker.enqueue(jobs)
            await worker.idle()
            assert (await series(worker, OTHER_TASKS)).total.outcomes == {"failed": 50}
            by_task = await MetricsReader(worker.broker).by_task(HOUR, [QUEUE])
            assert {each.task for each in by_task} == {OTHER_TASKS}
            assert len(worker.engine.jobs.meter.rows[QUEUE]) == 2

    @pytest.mark.usefixtures("broker")
    async def test_an_outcome_whose_reply_was_lost_is_counted_once(self, redis_url: str) -> None:
        """The connection is lost after Redis has run the script, which then says that the job is not ours."""
        async with Proxy(redis_url) as proxy:
            worker = Worker(proxy.url, retry_twice)
            worker.engine.start()
            await (await retry_twice.enqueue()).result(timeout=30)  # the script is known by now
            trap = proxy.drop_on(Script.named("finish").sha, when="after")
            job = await retry_twice.enqueue()
            await eventually(lambda: trap.sprung)
            await job.result(timeout=30)
            await worker.idle()
            assert (await series(worker)).total.outcomes == {"completed": 2, "retried": 4}
            assert worker.engine.jobs.meter.leases_lost == 0
            await worker.stop()

    async def test_many_workers_add_up(self, start: StartWorker) -> None:
        """Three workers of one queue, each with its own share."""
        async with start(succeed, id="a") as a, start(succeed, id="b") as b, start(succeed, id="c") as c:
            await succeed.enqueue_many([{"milliseconds": 2}] * 600)
            await a.idle()
            for each in (a, b, c):
                assert each.engine.jobs.meter.row(QUEUE, succeed.name)[0] > 0
            await asyncio.gather(*(each.engine._reporter.report() for each in (a, b, c)))
            assert (await series(a)).total.outcomes == {"completed": 600}

    async def test_while_redis_is_away_counts_are_kept(self, own_redis: StartRedis) -> None:
        """They reach Redis when it is back, each once."""
        server = own_redis()
        worker = Worker(server.url, succeed, fail)
        worker.engine._parts["reporter"] = None  # it reports when the test says so
        worker.engine.start()
        try:
            set_default_broker(worker.broker)
            await succeed.enqueue_many([{}] * 20)
            await fail.enqueue()
            await worker.idle()
            server.kill()
            await worker.engine._reporter.report()
            await worker.engine._reporter.report()
            server.restart()
            assert (await series(worker)).total.outcomes == {"completed": 20, "failed": 1}
            assert len(await MetricsReader(worker.broker).latest(QUEUE)) == 21
            assert (await series(worker)).total.outcomes == {"completed": 20, "failed": 1}
        finally:
            await worker.stop()


async def _outcomes(worker: Worker) -> dict[str, int]:
    return (await series(worker)).total.outcomes


class TestEvents:
    @pytest.fixture
    async def ledger(self, database: db.Database[Any]) -> Ledger:
        """The job rows of the default database."""
        await database.check()
        return Ledger()

    async def test_a_duplicate_is_suppressed_and_counted(
        self, start: StartWorker, ledger: Ledger, broker: Broker, postgres: Observer
    ) -> None:
        """The job is delivered again after its effects were committed."""
        async with start(write, ledger=ledger) as worker:
            job = await write.enqueue("once")
            await worker.idle()
            assert job.enqueued_at is not None
            enqueued_at = round(job.enqueued_at.timestamp() * 1000)
            payload = encode(write.name, b'{"words":"once"}', enqueued_at)
            await broker.publish([NewJob(job.job_id, payload, write.name, QUEUE, enqueued_at)])
            await worker.idle()
            assert await postgres.fetchval("SELECT count(*) FROM note") == 1
            assert scraped(worker)["tandem_duplicates_suppressed_total"] == 1
            assert (await series(worker)).total.outcomes == {"completed": 1, "duplicate": 1}

    async def test_conflicts_in_the_database_are_counted_as_reruns(self, start: StartWorker, ledger: Ledger) -> None:
        """Two attempts end in a serialization failure, the third one does not."""
        async with start(conflict_twice, ledger=ledger) as worker:
            await conflict_twice.enqueue()
            await worker.idle()
            assert scraped(worker)["tandem_conflict_reruns_total"] == 2
            assert (await series(worker)).total.outcomes == {"completed": 1}

    async def test_what_the_relay_publishes_is_counted(
        self, start: StartWorker, ledger: Ledger, observer: Any, postgres: Observer
    ) -> None:
        """Redis has lost three jobs that were enqueued in a transaction."""
        async with db.scope():
            await write.enqueue_many([{"words": str(number)} for number in range(3)])
        observer.flushdb()
        async with start(write, ledger=ledger) as worker:
            await eventually(lambda: postgres.fetchval("SELECT count(*) FROM note"), equals=3)
            assert scraped(worker)["tandem_relay_published_total"] == 3

    async def test_lost_leases_are_counted_once_each(self, start: StartWorker, observer: Any) -> None:
        """One is acquired again after a flush; the other is another worker's by then."""
        async with start(hold) as worker:
            job = await hold.enqueue()
            await eventually(lambda: worker.engine.jobs.executions.running)
            payload, score = observer.get(f"arq:job:{job.job_id}"), observer.zscore(QUEUE, job.job_id)
            observer.flushdb()
            await eventually(lambda: scraped(worker).get("tandem_leases_lost_total"), equals=1)
            observer.set(f"arq:job:{job.job_id}", payload)
            observer.zadd(QUEUE, {job.job_id: score})
            observer.set(f"arq:in-progress:{job.job_id}", f"{'o' * 28}:{score}", px=60_000)
            observer.hset("arq:started", job.job_id, f"1:{'o' * 28}")
            await eventually(lambda: scraped(worker).get("tandem_leases_lost_total"), equals=2)
            assert (await series(worker)).total.outcomes == {"abandoned": 1}

    async def test_crashes_are_counted_by_the_worker_that_ends_the_job(
        self, start: StartWorker, broker: Broker
    ) -> None:
        """Two workers claimed it and died; the third one runs it."""
        await succeed.enqueue()
        for token in ("a" * 28, "b" * 28):
            assert len((await broker.claim(QUEUE, token, 50, 1)).jobs) == 1
            await asyncio.sleep(0.1)
        async with start(succeed) as worker:
            await worker.idle()
            assert scraped(worker)["tandem_crashes_total"] == 2

    @pytest.mark.usefixtures("broker")
    async def test_jobs_are_counted_as_enqueued_when_they_exist(self, database: db.Database[Any]) -> None:
        """Outside a transaction at once; in one when it commits; not if the id is taken or it is rolled back."""
        key = QUEUE, write.name
        before = enqueued_counts().get(key, 0)
        await write.enqueue_many([{"words": "a"}] * 3)
        await write.using(job_id="taken", transactional=False).enqueue("b")
        await write.using(job_id="taken", transactional=False).enqueue("b")
        async with db.scope():
            await write.enqueue_many([{"words": "c"}] * 5)
            assert enqueued_counts()[key] == before + 4
        with pytest.raises(RuntimeError):
            async with db.scope():
                await write.enqueue("d")
                raise RuntimeError
        async with database.open_session({})[0] as session:
            await write.using(session=session).enqueue("e")
            await session.commit()
        assert enqueued_counts()[key] == before + 10
        registry = CollectorRegistry()
        registry.register(EnqueuedCollector())
        labels = {"task": write.name, "queue": QUEUE}
        assert registry.get_sample_value("tandem_jobs_enqueued_total", labels) == before + 10


class TestWorkers:
    async def test_a_worker_describes_itself_and_what_it_runs(self, start: StartWorker, broker: Broker) -> None:
        """Its jobs, slots, memory and state; after its end it has no record."""
        reader = MetricsReader(broker)
        async with start(hold, id="here", concurrency=3) as worker:
            job = await hold.enqueue()
            await eventually(lambda: worker.engine.jobs.executions.running)
            await eventually(lambda: _state(worker, reader), equals=WorkerState.WORKING)
            (found,) = await reader.workers([QUEUE])
            assert (found.id, found.state, found.why) == ("here", WorkerState.WORKING, "")
            assert (found.slots, found.busy, found.queues) == (3, 1, (QUEUE,))
            assert [(each.id, each.task, each.attempt) for each in found.jobs] == [(job.job_id, "hold", 1)]
            assert found.memory > 10_000_000
            assert found.version
            assert found.host
            assert found.pid
            assert found.age < 3
            draining = asyncio.create_task(worker.drain())
            await eventually(lambda: _state(worker, reader), equals=WorkerState.DRAINING)
            worker.engine.hurry()
            await draining
            assert await reader.workers([QUEUE]) == []

    async def test_an_unwell_worker_says_why(self, start: StartWorker, broker: Broker) -> None:
        """Its health record is gone, and this one is not."""
        answers = True

        async def ask_database() -> None:
            if not answers:
                raise OSError

        async with start(succeed, ask_database=ask_database) as worker:
            await eventually(lambda: _state(worker, MetricsReader(broker)), equals=WorkerState.WORKING)
            answers = False
            await eventually(lambda: _state(worker, MetricsReader(broker)), equals=WorkerState.UNWELL)
            (found,) = await MetricsReader(broker).workers([QUEUE])
            assert found.why == "the database does not answer"

    @pytest.mark.usefixtures("database")
    async def test_the_latest_ended_jobs_without_a_row_are_listed(self, start: StartWorker, broker: Broker) -> None:
        """Jobs whose end the ledger has are not among them."""
        async with start(succeed, fail, write, ledger=Ledger()) as worker:
            done = await succeed.enqueue()
            await write.enqueue("has a row")
            await fail.enqueue()
            async with db.scope():
                await succeed.enqueue()
            await worker.idle()
            await worker.engine._reporter.report()
            (found,) = await MetricsReader(broker).latest(QUEUE)
            assert (found.id, found.task, found.outcome, found.worker) == (done.job_id, "succeed", "completed", "w")
            assert found.started_at <= found.finished_at

    async def test_of_ended_jobs_the_latest_thousand_are_kept(self, start: StartWorker, broker: Broker) -> None:
        """Without a ledger failed jobs are among them, with one line of their error."""
        async with start(succeed, fail, concurrency=100) as worker:
            for _ in range(3):
                await succeed.enqueue_many([{}] * 500)
                await worker.idle()
                await worker.engine._reporter.report()
            failed = await fail.enqueue()
            await worker.idle()
            await worker.engine._reporter.report()
            found = await MetricsReader(broker).latest(QUEUE)
            assert len(found) == 1000
            (of_failed,) = [job for job in found if job.outcome == "failed"]
            assert (of_failed.id, of_failed.error) == (failed.job_id, "ValueError: no …")

    async def test_the_last_success_of_a_scheduled_task_is_kept(self, start: StartWorker, broker: Broker) -> None:
        """Of no other task."""
        async with start(yearly, succeed) as worker:
            await yearly.enqueue()
            await succeed.enqueue()
            await worker.idle()
            await worker.engine._reporter.report()
            assert set(await MetricsReader(broker).successes(QUEUE)) == {"yearly"}

    async def test_every_key_of_the_metrics_expires(self, start: StartWorker, observer: Any) -> None:
        """Buckets of minutes after eight hours, those of ten minutes after 72."""
        async with start(yearly) as worker:
            await yearly.enqueue()
            await worker.idle()
            await worker.engine._reporter.report()
            keys = observer.keys("arq:queue:metrics:*")
            assert len(keys) == 6
            assert all(observer.pttl(key) > 0 for key in keys)
            for resolution, kept in RESOLUTIONS.items():
                (key,) = [key for key in keys if f":{resolution * 1000}:" in key]
                assert kept < observer.pttl(key) / 1000 <= kept + resolution


async def _state(worker: Worker, reader: MetricsReader) -> WorkerState | None:
    await worker.engine._reporter.report()
    found = await reader.workers([QUEUE])
    return found[0].state if found else None

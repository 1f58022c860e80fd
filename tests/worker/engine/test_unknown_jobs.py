"""Jobs whose task or arguments a worker does not know wait for a worker that does, and fail after a time limit."""

import asyncio
import time
from typing import Any

import pytest

from tests.waiting import eventually
from tests.worker.engine.conftest import Seen, StartWorker
from worker import Broker, JobFailed, task
from worker.broker.records import Claim
from worker.broker.worker_records import WorkerRecords
from worker.engine import announcer
from worker.engine import unknown_jobs as unknown
from worker.engine.execution import Execution
from worker.engine.limits import Limits
from worker.engine.outcome import Outcome, OutcomeKind
from worker.engine.unknown_jobs import UnknownJobs, _Met
from worker.errors import UnknownArgumentsError, UnknownTaskError
from worker.message import Message

LIMITS = Limits(timeout=10.0, max_tries=5, keep_result=0, lease=10.0)


@task
async def double(number: int) -> int:
    return 2 * number


@task(name="double")
async def double_with_more(number: int, more: int = 0, *, note: str = "") -> str:
    return f"{2 * number + more}{note}"


@task
async def hold(seconds: float) -> None:
    await asyncio.sleep(seconds)


class TestUnknownTasks:
    async def test_a_job_of_an_unknown_task_is_put_back_at_no_cost(self, start: StartWorker, seen: Seen) -> None:
        """It waits for a worker that knows the task."""
        job = await double.enqueue(3)
        async with start() as old:
            await eventually(lambda: old.engine.jobs.unknown_jobs._met)
            await eventually(lambda: not seen.unfinished())
            assert await job.status() == "deferred"
        # While both work it may come back to the old one, which puts it back for longer each time.
        async with start(double, id="new"):
            assert await job.result(timeout=30) == 6
        assert seen.result(job.job_id)["t"] == 1

    async def test_an_unknown_job_not_seen_for_long_is_forgotten(self, start: StartWorker) -> None:
        """Another worker must have taken it by now."""
        async with start(unknown_for=5) as old:
            met, now = old.engine.jobs.unknown_jobs._met, time.monotonic()
            met[b"long gone", 1] = _Met(now - 71)
            met[b"may come again", 1] = _Met(now - 60)
            job = await double.enqueue(3)
            await eventually(lambda: {job_id for job_id, _ in met}, equals={b"may come again", job.job_id.encode()})

    async def test_the_time_that_an_earlier_job_of_an_id_was_unknown_does_not_count(self) -> None:
        """Each job has a time limit of its own."""
        unknown_jobs = UnknownJobs(Broker("redis://127.0.0.1:1"), unknown_for=0.2)

        async def judged(enqueued_at: int) -> OutcomeKind:
            job = Execution(Claim(b"nightly", b"{}", b"1", 0, 0, None), "arq:queue", "t" * 28, 1, LIMITS)
            job.message = Message("nightly", "double", enqueued_at=enqueued_at)
            outcome = Outcome(OutcomeKind.POSTPONED, error=UnknownArgumentsError.of("double(number)", ["note"]))
            return (await unknown_jobs.judge(job, outcome)).kind

        assert await judged(1_000) is OutcomeKind.POSTPONED
        await asyncio.sleep(0.2)
        assert await judged(2_000) is OutcomeKind.POSTPONED
        assert await judged(1_000) is OutcomeKind.FAILED

    async def test_a_job_of_an_unknown_task_fails_after_the_time_limit(self, start: StartWorker, seen: Seen) -> None:
        """The error says what to do."""
        job = await double.enqueue(3)
        async with start(unknown_for=0.5):
            with pytest.raises(JobFailed, match=r"no task 'double' in this worker's registry, .* for 0\.5 s: list it"):
                await job.result(timeout=30)
        assert seen.left() == set()


class TestTasksOfAnotherService:
    async def test_a_job_of_an_unknown_task_waits_while_a_worker_that_knows_it_is_alive(
        self, start: StartWorker, broker: Broker
    ) -> None:
        """Two services share a queue. The job waits however long the other service is busy."""
        async with start(double, hold, id="theirs", concurrency=1) as theirs:
            await hold.enqueue(3.0)
            await eventually(lambda: theirs.engine.jobs.executions.running)
            async with start(hold, id="ours", unknown_for=0.2) as ours:
                job = await double.enqueue(3)
                met = await eventually(lambda: ours.engine.jobs.unknown_jobs._met)
                assert [job_id for job_id, _ in met] == [job.job_id.encode()]
                await eventually(lambda: all(time.monotonic() - each.first > 1.5 for each in met.values()))
                assert await job.status() in ("deferred", "in_progress")
                assert await job.result(timeout=30) == 6
        assert await WorkerRecords(broker.connections).announced("arq:queue") == {"double", "hold"}

    async def test_a_job_of_an_unknown_task_fails_once_no_live_worker_knows_it(
        self, start: StartWorker, broker: Broker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The tasks of a dead worker are forgotten. Then the time limit begins."""
        monkeypatch.setattr(announcer, "_INTERVAL", 0.1)
        monkeypatch.setattr(announcer, "_LIFETIME", 500)
        await WorkerRecords(broker.connections).announce("arq:queue", ["double"], 2000)
        begun = time.monotonic()
        job = await double.enqueue(3)
        async with start(hold, unknown_for=1):
            with pytest.raises(JobFailed, match="no task 'double'"):
                await job.result(timeout=30)
        assert time.monotonic() - begun > 2.5

    async def test_a_worker_that_knows_the_task_but_serves_another_queue_does_not_count(
        self, start: StartWorker, broker: Broker
    ) -> None:
        """The job fails after the time limit."""
        await WorkerRecords(broker.connections).announce("mail", ["double"], 20_000)
        job = await double.enqueue(3)
        async with start(unknown_for=0):
            with pytest.raises(JobFailed, match="no task 'double'"):
                await job.result(timeout=30)

    async def test_live_workers_are_looked_up_once_for_many_unknown_jobs(
        self, start: StartWorker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Jobs of known tasks cost no look-up."""
        monkeypatch.setattr(announcer, "_INTERVAL", 60)
        monkeypatch.setattr(unknown, "_CACHED", 60)
        jobs = await double.enqueue_many([{"number": number} for number in range(200)])
        asked: list[str] = []
        announced = WorkerRecords.announced

        async def count(self: WorkerRecords, name: str) -> Any:
            asked.append(name)
            return await announced(self, name)

        monkeypatch.setattr(WorkerRecords, "announced", count)
        async with start(concurrency=50) as old:
            await eventually(lambda: len(old.engine.jobs.unknown_jobs._met), equals=len(jobs))
        assert asked == ["arq:queue"]
        async with start(double, id="new") as one:
            await one.idle(timeout=60)
        assert asked == ["arq:queue"]

    async def test_an_unknown_job_is_put_back_while_redis_is_down(self) -> None:
        """It does not fail because live workers could not be looked up."""
        job = Execution(Claim(b"1", b"{}", b"1", 0, 0, None), "arq:queue", "t" * 28, 1, LIMITS)
        job.message = Message("1", "double")
        outcome = Outcome(OutcomeKind.POSTPONED, error=UnknownTaskError.of("double"))
        broker = Broker("redis://127.0.0.1:1")
        judged = await UnknownJobs(broker, unknown_for=0).judge(job, outcome)
        await broker.close()
        assert (judged.kind, judged.delay) == (OutcomeKind.POSTPONED, 1.0)


class TestUnknownArguments:
    @pytest.mark.parametrize("call", [{"number": 3, "note": "!"}, {"number": 3, "more": 1}])
    async def test_a_job_with_unknown_arguments_is_put_back_at_no_cost(
        self, start: StartWorker, seen: Seen, call: dict[str, Any]
    ) -> None:
        """Producers are deployed first: the job waits for a worker that takes its arguments."""
        (job,) = await double_with_more.enqueue_many([call])
        async with start(double) as old:
            await eventually(lambda: old.engine.jobs.unknown_jobs._met)
            await eventually(lambda: not seen.unfinished())
            assert await job.status() == "deferred"
        async with start(double_with_more, id="new"):
            assert await job.result(timeout=30) == ("6!" if "note" in call else "7")
        assert seen.result(job.job_id)["t"] == 1

    async def test_a_job_with_unknown_arguments_fails_after_the_time_limit(self, start: StartWorker) -> None:
        """The error says what to do."""
        job = await double_with_more.enqueue(3, note="!")
        async with start(double, unknown_for=0.5):
            with pytest.raises(JobFailed, match=r"\(number: int\) does not take note, .* 0\.5 s: deploy"):
                await job.result(timeout=30)

    async def test_a_job_with_invalid_arguments_fails_at_once(self, start: StartWorker) -> None:
        """Its arguments would be invalid in any worker."""
        job = await task(name="double")(_double_a_text).enqueue("three")
        async with start(double):
            with pytest.raises(JobFailed, match="valid integer"):
                await job.result(timeout=5)


async def _double_a_text(number: str) -> None: ...

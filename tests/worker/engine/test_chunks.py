"""Chunks: many jobs in one call and one transaction, on a real Redis, PostgreSQL and SQLite."""

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel, Field, ValidationError, field_validator
from sqlalchemy import text

import db
from db import AsyncSession
from tests.servers import Observer
from tests.stopwatch import Stopwatch
from tests.waiting import eventually
from tests.worker.conftest import Count
from tests.worker.engine.conftest import StartWorker
from worker import Chunk, Job, JobStatus, Retry, task
from worker.ledger import Ledger

pytestmark = pytest.mark.usefixtures("rows", "database")

ADD = text("INSERT INTO note (words) VALUES (:words)")


@dataclass
class Note:
    """One call of the tasks below."""

    words: str
    group: int = 0


@dataclass
class Seen:
    """The calls of the bodies, each as the words of its chunk."""

    chunks: list[list[str]]
    go_on: asyncio.Event
    is_held: bool = False


seen = Seen([], asyncio.Event())


@pytest.fixture(autouse=True)
def _forget() -> None:
    seen.chunks.clear()
    seen.go_on = asyncio.Event()
    seen.is_held = False


async def handle(session: AsyncSession, notes: list[Note]) -> list[str]:
    """Add the notes. A note "bad" fails, "again" asks for another try, "hold" waits for `go_on`."""
    words = [note.words for note in notes]
    seen.chunks.append(words)
    if "bad" in words:
        raise ValueError("a bad note")
    if "again" in words and seen.chunks.count(["again"]) < 2:
        raise Retry(0)
    await session.execute(ADD, [{"words": each} for each in words])
    if "hold" in words and not seen.is_held:
        seen.is_held = True
        await seen.go_on.wait()
    return [each.upper() for each in words]


add = task(name="add", chunk=Chunk(size=50, wait=1.0))(handle)
add_fifty = task(name="add_fifty", chunk=Chunk(size=50, wait=30.0))(handle)
add_by_group = task(name="add_by_group", chunk=Chunk(size=50, wait=1.0, by="group"))(handle)


async def enqueue(*words: str) -> list[Job[str]]:
    """Jobs that are claimed in this order: of those of one millisecond the lowest id is first."""
    return [await add.using(job_id=f"{number:03}").enqueue(words=each) for number, each in enumerate(words)]


async def run(start: StartWorker, jobs: list[Job[Any]], *tasks: Any, **settings: Any) -> list[Any]:
    """Run the jobs, and return their results, or their errors."""
    async with start(*(tasks or (add,)), ledger=Ledger(), **settings):
        return await asyncio.gather(*(job.result(timeout=15) for job in jobs), return_exceptions=True)


async def states(postgres: Observer) -> dict[str, int]:
    found = await postgres.fetch("SELECT state, count(*) AS jobs FROM tandem_jobs GROUP BY state")
    return {row["state"]: row["jobs"] for row in found}


async def test_the_jobs_of_a_chunk_are_one_call_and_one_transaction_with_a_result_each(
    start: StartWorker, rows: Count, postgres: Observer
) -> None:
    """Each job has its own row in the ledger. All rows have one transaction."""
    jobs = [await add_fifty.using(job_id=f"{number:03}").enqueue(words=f"n{number}") for number in range(50)]
    results = await run(start, jobs, add_fifty)
    assert results == [f"N{number}" for number in range(50)]
    assert len(seen.chunks) == 1
    assert await rows() == 50
    assert await states(postgres) == {"done": 50}
    assert await postgres.fetchval("SELECT count(DISTINCT xmin::text) FROM tandem_jobs") == 1


async def test_a_chunk_is_larger_than_the_workers_number_of_slots(start: StartWorker, rows: Count) -> None:
    """Its jobs share one slot, so that a worker of two slots gathers fifty."""
    jobs = await add_fifty.enqueue_many({"words": f"n{number}"} for number in range(50))
    await run(start, jobs, add_fifty, concurrency=2)
    assert [len(chunk) for chunk in seen.chunks] == [50]
    assert await rows() == 50


async def test_with_one_slot_no_job_waits_for_others(start: StartWorker, rows: Count) -> None:
    """None could come."""
    jobs = [await add_fifty.enqueue(words=words) for words in ("a", "b")]
    assert await run(start, jobs, add_fifty, concurrency=1) == ["A", "B"]
    assert seen.chunks == [["a"], ["b"]]
    assert await rows() == 2


async def test_all_slots_are_free_after_chunks(start: StartWorker) -> None:
    """Whether they went well or were run one by one."""
    async with start(add, ledger=Ledger(), concurrency=4) as one:
        for words in ("a", "bad", "b"):
            jobs = await add.enqueue_many(
                {"words": f"{words}" if number == 3 else f"{words}{number}"} for number in range(9)
            )
            await asyncio.gather(*(job.result(timeout=15) for job in jobs), return_exceptions=True)
            await one.idle()
            assert one.engine.jobs.slots.free == 4


async def test_a_chunk_does_not_wait_for_more_once_it_is_full(start: StartWorker) -> None:
    """Three chunks of fifty from 120 jobs: two at once, the rest after the wait."""
    jobs = await add.enqueue_many({"words": f"n{number}"} for number in range(120))
    await run(start, jobs)
    assert sorted(map(len, seen.chunks)) == [20, 50, 50]


async def test_jobs_of_different_values_are_in_different_chunks(start: StartWorker) -> None:
    """`by` names the argument."""
    jobs = await add_by_group.enqueue_many({"words": f"{number}", "group": number % 3} for number in range(30))
    await run(start, jobs, add_by_group)
    assert sorted(sorted({int(words) % 3 for words in chunk}) for chunk in seen.chunks) == [[0], [1], [2]]


async def test_a_value_that_was_not_given_is_the_default(start: StartWorker) -> None:
    """Jobs with the default and jobs with the same value go together."""
    jobs = [await add_by_group.enqueue(words="a"), await add_by_group.enqueue(words="b", group=0)]
    await run(start, jobs, add_by_group)
    assert [sorted(chunk) for chunk in seen.chunks] == [["a", "b"]]


class Even(BaseModel):
    """A call that its class may refuse."""

    number: int = Field(gt=0)

    @field_validator("number")
    @classmethod
    def _even(cls, number: int) -> int:
        if number % 2:
            raise ValueError("odd")
        return number


@pytest.mark.parametrize("by", [None, "number"])
async def test_a_call_that_its_class_refuses_fails_alone(start: StartWorker, by: str | None) -> None:
    """A model's constraints hold when the job is enqueued, and its validators when it runs."""

    @task(chunk=Chunk(wait=1.0, by=by))
    async def halve(calls: list[Even]) -> list[int]:
        return [call.number // 2 for call in calls]

    with pytest.raises(ValidationError):
        await halve.enqueue(number=0)
    jobs = await halve.enqueue_many({"number": number} for number in (2, 3, 4, 4))
    results = await run(start, jobs, halve)
    assert [results[0], *results[2:]] == [1, 2, 2]
    assert "odd" in str(results[1])


async def test_a_bad_job_fails_alone_and_the_others_of_its_chunk_are_done(
    start: StartWorker, rows: Count, postgres: Observer
) -> None:
    """The chunk is rolled back, and each job runs by itself."""
    words = ["a", "bad", "b", "c"]
    jobs = await enqueue(*words)
    results = await run(start, jobs)
    assert [results[0], *results[2:]] == ["A", "B", "C"]
    assert repr(results[1]) == "ValueError('a bad note')"
    assert seen.chunks == [words, ["a"], ["bad"], ["b"], ["c"]]
    assert await rows() == 3
    assert await states(postgres) == {"done": 3, "failed": 1}


async def test_a_job_that_asks_to_run_again_does_so_alone(start: StartWorker, rows: Count) -> None:
    """Its try is counted, and its next one is outside of any chunk."""
    jobs = await enqueue("a", "again")
    assert await run(start, jobs) == ["A", "AGAIN"]
    assert seen.chunks == [["a", "again"], ["a"], ["again"], ["again"]]
    assert await rows() == 2


async def test_a_job_that_another_attempt_has_completed_is_dropped_from_its_chunk(
    start: StartWorker, rows: Count, postgres: Observer
) -> None:
    """The others of the chunk are done once each."""
    jobs = await enqueue("n0", "n1", "n2", "n3", "n4")
    info = await jobs[2].info()
    assert info is not None
    await postgres.execute(
        "INSERT INTO tandem_jobs (id, enqueued_at, task, queue, state, result, finished_at)"
        " VALUES ($1, $2, 'add', 'arq:queue', 'done', $3, $2)",
        jobs[2].job_id,
        round(info.enqueued_at.timestamp() * 1000),
        b'"EARLIER"',
    )
    assert await run(start, jobs) == ["N0", "N1", "EARLIER", "N3", "N4"]
    assert await rows() == 4
    assert await postgres.fetchval("SELECT count(*) FROM note WHERE words = 'n2'") == 0
    assert await states(postgres) == {"done": 5}


@pytest.mark.parametrize("words", ["hold", "a"])
async def test_an_aborted_job_leaves_its_chunk_and_the_others_are_done(
    start: StartWorker, rows: Count, postgres: Observer, words: str
) -> None:
    """The running chunk is rolled back for it."""
    jobs = await enqueue("hold", "a", "b")
    aborted = jobs[["hold", "a"].index(words)]
    async with start(add, ledger=Ledger()):
        await eventually(lambda: seen.is_held)
        assert await aborted.abort(timeout=10)
        others = [job for job in jobs if job is not aborted]
        await asyncio.gather(*(job.result(timeout=15) for job in others))
    assert await aborted.status() is JobStatus.complete
    assert await rows() == 2
    assert await postgres.fetchval("SELECT count(*) FROM note WHERE words = $1", words) == 0


async def test_a_worker_that_stops_puts_each_job_of_a_running_chunk_back(
    start: StartWorker, rows: Count, postgres: Observer
) -> None:
    """The chunk is rolled back. The next worker runs it."""
    jobs = await enqueue("hold", "a", "b")
    async with start(add, ledger=Ledger(), grace=0.1):
        await eventually(lambda: seen.is_held)
    assert [await job.status() for job in jobs] == [JobStatus.queued] * 3
    assert await rows() == 0
    assert await run(start, jobs) == ["HOLD", "A", "B"]
    assert await rows() == 3
    assert await states(postgres) == {"done": 3}


async def test_a_chunk_past_its_timeout_is_run_one_by_one(start: StartWorker, rows: Count) -> None:
    """Each job has the timeout for itself."""
    jobs = await enqueue("hold", "a")
    assert await run(start, jobs, job_timeout=0.5) == ["HOLD", "A"]
    assert seen.chunks == [["hold", "a"], ["hold"], ["a"]]
    assert await rows() == 2


async def test_a_result_that_is_no_list_of_the_same_length_fails_each_job_and_says_so(start: StartWorker) -> None:
    """The results could not be told apart."""

    @task(chunk=Chunk(wait=1.0))
    async def wrong(session: AsyncSession, notes: list[Note]) -> list[int]:
        return [1] * (len(notes) + 1)

    jobs = await wrong.enqueue_many({"words": "a"} for _ in range(2))
    results = await run(start, jobs, wrong)
    assert {type(result) for result in results} == {TypeError}
    assert "returned a list of 2 for 1 calls: return a list with a result for each call" in str(results[0])


async def test_a_chunk_without_a_database_has_its_results(start: StartWorker) -> None:
    """No session, no row, and None for each job if the function returns None."""

    @task(chunk=Chunk(wait=1.0))
    async def count(notes: list[Note]) -> None:
        seen.chunks.append([note.words for note in notes])

    jobs = await count.enqueue_many({"words": "a"} for _ in range(5))
    assert await run(start, jobs, count) == [None] * 5
    assert seen.chunks == [["a"] * 5]


async def test_jobs_of_a_transaction_are_handled_in_chunks(start: StartWorker, rows: Count, postgres: Observer) -> None:
    """Their pending rows are set done in one statement."""
    async with db.scope():
        jobs = await add.enqueue_many({"words": f"n{number}"} for number in range(20))
    assert await states(postgres) == {"pending": 20}
    await run(start, jobs)
    assert await rows() == 20
    assert await states(postgres) == {"done": 20}


async def test_a_worker_that_stops_starts_a_chunk_that_waits_for_more(start: StartWorker, rows: Count) -> None:
    """No more jobs will come. The two are done, long before the wait is over."""
    jobs = [await add_fifty.enqueue(words=words) for words in ("a", "b")]
    async with start(add_fifty, ledger=Ledger(), grace=20.0) as one:
        await eventually(lambda: len(one.engine.jobs.executions), equals=2)
        watch = Stopwatch()
    assert watch.seconds_running < 10
    assert [await job.result(timeout=1) for job in jobs] == ["A", "B"]
    assert [sorted(chunk) for chunk in seen.chunks] == [["a", "b"]]
    assert await rows() == 2


async def test_the_leases_of_jobs_hold_while_their_chunk_waits_for_more(start: StartWorker, rows: Count) -> None:
    """For longer than one attempt may take."""

    @task(chunk=Chunk(wait=5.0), timeout=0.5)
    async def patient(session: AsyncSession, notes: list[Note]) -> list[str]:
        return await handle(session, notes)

    jobs = await patient.enqueue_many({"words": words} for words in ("a", "b"))
    assert await run(start, jobs, patient, grace=0.1) == ["A", "B"]
    assert [sorted(chunk) for chunk in seen.chunks] == [["a", "b"]]
    assert await rows() == 2


async def test_the_leases_of_jobs_hold_while_they_wait_for_their_turn(start: StartWorker, rows: Count) -> None:
    """One by one they take longer than one attempt may."""

    @task(chunk=Chunk(size=12, wait=5.0), timeout=1.0)
    async def slow(session: AsyncSession, notes: list[Note]) -> None:
        seen.chunks.append([note.words for note in notes])
        await asyncio.sleep(0.9 * len(notes))
        await session.execute(ADD, [{"words": note.words} for note in notes])

    jobs = await slow.enqueue_many({"words": f"n{number}"} for number in range(12))
    assert await run(start, jobs, slow, grace=0.1) == [None] * 12
    assert sorted(map(len, seen.chunks)) == [1] * 12 + [12]
    assert await rows() == 12


async def test_a_chunk_whose_effects_may_happen_twice_writes_no_rows(
    start: StartWorker, rows: Count, postgres: Observer
) -> None:
    """`once=False` asks nothing of the ledger."""
    loose = task(name="loose", chunk=Chunk(wait=1.0), once=False)(handle)
    jobs = await loose.enqueue_many({"words": words} for words in ("a", "b"))
    assert await run(start, jobs, loose) == ["A", "B"]
    assert len(seen.chunks) == 1
    assert await rows() == 2
    assert await states(postgres) == {}


async def test_a_job_that_is_aborted_while_its_chunk_waits_does_not_run(start: StartWorker, rows: Count) -> None:
    """The others of the chunk run, also if it was the first one, which had the slot."""
    jobs = await enqueue("a", "b", "c")
    async with start(add, ledger=Ledger(), concurrency=2) as one:
        await eventually(lambda: len(one.engine.jobs.executions), equals=3)
        assert await jobs[0].abort(timeout=10)
        assert [await job.result(timeout=15) for job in jobs[1:]] == ["B", "C"]
        await one.idle()
        assert one.engine.jobs.slots.free == 2
    assert seen.chunks == [["b", "c"]]
    assert await rows() == 2

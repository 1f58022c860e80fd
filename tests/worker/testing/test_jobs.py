"""`Jobs`: what is enqueued, what runs, and what a test may let happen."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from pydantic import ValidationError

import db
from tests.worker.testing.note_tasks import (
    Address,
    add,
    add_before,
    add_each,
    describe,
    double,
    notes,
    tick,
    try_again,
    write,
)
from worker import Job, JobStatus, testing
from worker.errors import WorkerError


class TestEnqueued:
    async def test_a_job_of_a_committed_scope_waits(self, jobs: testing.Jobs) -> None:
        """The commit of a savepoint makes the job, with its arguments."""
        async with db.scope():
            await add.enqueue("a")
        assert [(job.task, job.args) for job in await jobs.enqueued()] == [("add", {"words": "a"})]

    async def test_a_rolled_back_scope_leaves_no_job(self, jobs: testing.Jobs) -> None:
        """Also a job with an id, whose row is written at once."""
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                await add.enqueue("a")
                await add.using(job_id="b").enqueue("b")
                raise ZeroDivisionError
        await jobs.refute_enqueued()

    async def test_a_job_outside_of_a_scope_waits(self, jobs: testing.Jobs) -> None:
        """It goes straight to the queue."""
        await double.enqueue(2)
        job = await jobs.assert_enqueued(double, number=2, queue="math")
        assert (job.delay, job.attempt) == (0, 1)

    async def test_inside_an_open_scope_asking_is_refused(self, jobs: testing.Jobs) -> None:
        """The job does not exist yet, and the test would be told that it does not."""
        async with db.scope():
            await add.enqueue("a")
            with pytest.raises(WorkerError, match="leave the scope"):
                await jobs.enqueued(add)

    async def test_a_delay_counts_from_the_enqueueing(self, jobs: testing.Jobs) -> None:
        """In a transaction and outside of one; `at` is a moment."""
        moment = datetime.now(UTC) + timedelta(hours=2)
        async with db.scope():
            await add.using(delay=60).enqueue("a")
            await add.using(at=moment).enqueue("b")
        await double.using(delay=timedelta(minutes=5)).enqueue(1)
        await jobs.assert_enqueued(add, words="a", delay=60)
        await jobs.assert_enqueued(add, words="b", at=moment)
        await jobs.assert_enqueued(double, delay=timedelta(minutes=5))
        with pytest.raises(AssertionError):
            await jobs.assert_enqueued(add, words="a", delay=61)

    async def test_arguments_match_in_depth(self, jobs: testing.Jobs) -> None:
        """A part is enough, ... is anything, a function decides, and values have the types that the task gets."""
        key, at = UUID(int=7), datetime(2026, 1, 2, tzinfo=UTC)
        await describe.enqueue(key, at, Address(street="Long 1", city="Rome"))
        await jobs.assert_enqueued(describe, key=key, address={"city": "Rome"}, args={"at": ...})
        await jobs.assert_enqueued(describe, args={"at": lambda moment: moment.year == 2026})
        await jobs.assert_enqueued(describe, address=Address(street="Long 1", city="Rome"))
        await jobs.refute_enqueued(describe, address={"city": "Paris"})
        await jobs.refute_enqueued(describe, copies=1)  # its caller has not given it

    async def test_a_failed_assertion_says_what_is_there(self, jobs: testing.Jobs) -> None:
        """It lists the waiting jobs, and counts those whose transaction was not committed."""
        await double.using(delay=5).enqueue(2)
        async with db.scope():
            await add.enqueue("lost")
            await db.rollback()
        with pytest.raises(AssertionError) as error:
            await jobs.assert_enqueued(double, number=3)
        assert str(error.value).splitlines() == [
            "no job waits with double(number=3)",
            "these jobs wait:",
            "  double(number=2), queue math, due after 5 s",
            "1 job was enqueued in a transaction that is not committed, or was rolled back",
        ]
        with pytest.raises(AssertionError, match="1 job waits, and not 2"):
            await jobs.assert_enqueued(double, count=2)
        with pytest.raises(AssertionError, match="1 such jobs wait"):
            await jobs.refute_enqueued(double)

    async def test_an_unknown_parameter_is_refused(self, jobs: testing.Jobs) -> None:
        """A misspelt name would never match, and refute everything."""
        with pytest.raises(WorkerError, match="has no parameter wrods"):
            await jobs.refute_enqueued(add, wrods="a")
        with pytest.raises(WorkerError, match=r"at is an option here, and a parameter of describe: write args=\{'at'"):
            await jobs.assert_enqueued(describe, at=datetime.now(UTC))


class TestPerform:
    async def test_the_session_is_committed_and_the_result_is_typed(self, jobs: testing.Jobs) -> None:
        """The arguments travel as JSON, and the result too."""
        run = await jobs.perform(add, "a")
        assert (run.outcome, run.result, run.error) == ("completed", "A", None)
        assert await notes() == ["a"]
        await jobs.refute_enqueued()

    async def test_a_retry_rolls_back_and_says_when(self, jobs: testing.Jobs) -> None:
        """Nothing of the attempt stays."""
        run = await jobs.perform(try_again, "a")
        assert (run.outcome, run.retry_in) == ("retried", 10)
        assert await notes() == []

    async def test_an_attempt_may_be_a_later_one(self, jobs: testing.Jobs) -> None:
        """`using` sets the try and the earlier starts."""
        run = await jobs.using(attempt=3, previous=4).perform(try_again, "a")
        assert (run.outcome, run.result) == ("completed", 3)
        with pytest.raises(ValueError, match="at least 2"):
            jobs.using(attempt=3, previous=1)

    async def test_a_failed_attempt_has_its_error(self, jobs: testing.Jobs) -> None:
        """The task's own exception, with its traceback."""
        run = await jobs.using(attempt=3).perform(try_again, "a")
        assert run.outcome == "completed"
        with jobs.fail(add, OSError("disk")):
            failed = await jobs.perform(add, "b")
        assert (failed.outcome, str(failed.error)) == ("failed", "disk")
        with pytest.raises(OSError, match="disk"):
            failed.result  # noqa: B018 - it raises

    async def test_a_wrong_argument_raises_as_where_it_is_enqueued(self, jobs: testing.Jobs) -> None:
        """No run is made of it."""
        with pytest.raises(ValidationError):
            await jobs.perform(add, 7)  # type: ignore[arg-type]

    async def test_a_plain_function_runs_in_a_thread(self, jobs: testing.Jobs) -> None:
        """As in a worker."""
        assert (await jobs.perform(double, 4)).result == 8


class TestDrain:
    async def test_jobs_run_with_the_jobs_that_they_enqueue(self, jobs: testing.Jobs) -> None:
        """In the order in which they are due."""
        async with db.scope():
            await add_each.enqueue(["a", "b"])
        tally = await jobs.drain()
        assert [run.job.task for run in tally.runs] == ["add_each", "add", "add"]
        assert (tally.completed, str(tally)) == (3, "3 completed")
        assert await notes() == ["a", "b"]
        await jobs.refute_enqueued()

    async def test_without_recursion_the_new_jobs_wait(self, jobs: testing.Jobs) -> None:
        """Only what was there has run."""
        await add_each.enqueue(["a", "b"])
        assert len(await jobs.drain(recursive=False)) == 1
        await jobs.assert_enqueued(add, count=2)

    async def test_without_recursion_a_new_job_that_is_due_earlier_does_not_end_the_drain(
        self, jobs: testing.Jobs
    ) -> None:
        """All of the jobs that were there run."""
        await add_before.enqueue("early")
        await add.enqueue("late")
        assert (await jobs.drain(recursive=False)).completed == 2
        assert await notes() == ["late"]

    async def test_a_failed_job_raises_unless_it_may_fail(self, jobs: testing.Jobs) -> None:
        """The error is the task's own one."""
        async with db.scope():
            await add.enqueue("a")
            await add.enqueue("a")
        with pytest.raises(Exception, match=r"(?i)unique"):
            await jobs.drain()
        await add.enqueue("a")
        assert (await jobs.drain(raises=False)).failed == 1

    async def test_an_endless_chain_is_refused(self, jobs: testing.Jobs) -> None:
        """At the limit, with the job that would be next."""
        await add_each.enqueue([str(number) for number in range(5)])
        with pytest.raises(WorkerError, match=r"3 jobs have run, and others are due: add\(words='2'\)"):
            await jobs.drain(limit=3)

    async def test_only_one_queue(self, jobs: testing.Jobs) -> None:
        """Jobs of other queues wait."""
        await double.enqueue(1)
        await add.enqueue("a")
        assert (await jobs.drain("math")).completed == 1
        await jobs.assert_enqueued(add)

    async def test_a_handle_reads_the_result(self, jobs: testing.Jobs) -> None:
        """`Job.status`, `info` and `result` work; waiting for a job that nothing runs is refused."""
        job = await double.enqueue(4)
        assert await job.status() is JobStatus.queued
        with pytest.raises(WorkerError, match=r"await jobs\.drain\(\)"):
            await job.result()
        await jobs.drain()
        assert (await job.status(), await job.result()) == (JobStatus.complete, 8)
        info = await job.info()
        assert info is not None
        assert (info.success, info.tries) == (True, 1)

    async def test_a_job_can_be_aborted(self, jobs: testing.Jobs) -> None:
        """It does not run, and its id is free."""
        job = await add.using(job_id="x", delay=60).enqueue("a")
        assert await job.abort(timeout=5)
        await jobs.refute_enqueued(add)
        assert (await add.using(job_id="x").enqueue("b")).is_new
        await jobs.drain()
        assert await notes() == ["b"]

    async def test_an_id_is_taken_while_its_result_is_kept(self, jobs: testing.Jobs) -> None:
        """As in Redis; time lets it go."""
        assert (await double.using(job_id="x").enqueue(1)).is_new
        assert not (await double.using(job_id="x").enqueue(1)).is_new
        await jobs.drain()
        assert not (await double.using(job_id="x").enqueue(1)).is_new
        await jobs.advance(seconds=61)
        assert (await double.using(job_id="x").enqueue(1)).is_new

    async def test_an_unknown_task_fails_and_says_what_to_do(self, jobs: testing.Jobs) -> None:
        """Nothing waits for a deploy in a test."""
        await Job("x").status()
        unknown = add.using(job_id="x")
        await unknown.enqueue("a")
        jobs._tasks._registered = {}
        jobs._tasks._named.clear()
        with pytest.raises(WorkerError, match="no task 'add' is known"):
            await jobs.drain()


class TestAdvance:
    async def test_what_falls_due_runs_at_its_time(self, jobs: testing.Jobs) -> None:
        """Delayed jobs and retries, each in its turn."""
        async with db.scope():
            await add.using(delay=30).enqueue("late")
            await try_again.enqueue("again")
        tally = await jobs.advance(minutes=1)
        assert await notes() == ["late", "again 3"]
        assert tally.counts == {"retried": 2, "completed": 2}

    async def test_cron_slots_run(self, jobs: testing.Jobs) -> None:
        """An hour has six slots of ten minutes."""
        jobs.use(tick)
        await jobs.advance(hours=1)
        assert sorted(await notes()) == [f"tick {minute}" for minute in ("00", "10", "20", "30", "40", "50")]

    async def test_a_job_expires(self, jobs: testing.Jobs) -> None:
        """A job that was not started in time does not run."""
        await add.using(delay=10, expires=5).enqueue("a")
        with jobs.pause():
            await jobs.advance(seconds=20)
        tally = await jobs.drain(raises=False)
        assert tally.counts == {"expired": 1}


class TestInline:
    async def test_a_job_runs_after_the_commit_that_made_it(self, jobs: testing.Jobs) -> None:
        """Never inside of it."""
        with jobs.inline():
            async with db.scope():
                await add.enqueue("job")
                await write(await db.session(), "request")
            assert await notes() == ["request", "job"]
            await add.enqueue("outside")
        assert await notes() == ["request", "job", "outside"]

    async def test_an_error_is_raised_at_the_end(self, jobs: testing.Jobs) -> None:
        """The request that made the job goes on."""
        went_on = False
        with pytest.raises(OSError, match="disk"), jobs.inline(), jobs.fail(add, OSError("disk")):
            async with db.scope():
                await add.enqueue("job")
            went_on = True
        assert went_on


class TestFaults:
    @pytest.mark.parametrize("at", ["start", "before_commit", "after_commit"])
    async def test_a_crash_loses_no_job_and_doubles_no_effect(self, jobs: testing.Jobs, at: testing.CrashPoint) -> None:
        """Wherever the worker dies, the next drain delivers the job, and the note is there once."""
        async with db.scope():
            await add.enqueue("a")
        with jobs.crash(add, at=at):
            assert (await jobs.drain()).counts == {"crashed": 1}
        assert await notes() == (["a"] if at == "after_commit" else [])
        tally = await jobs.drain()
        assert tally.counts == {"duplicate" if at == "after_commit" else "completed": 1}
        assert await notes() == ["a"]

    async def test_a_job_that_is_delivered_again_has_no_second_effect(self, jobs: testing.Jobs) -> None:
        """The stored result stands."""
        async with db.scope():
            job = await add.enqueue("a")
        await jobs.drain()
        run = await jobs.redeliver(job)
        assert (run.outcome, run.result) == ("duplicate", "A")
        assert await notes() == ["a"]

    async def test_a_paused_queue_waits(self, jobs: testing.Jobs) -> None:
        """Enqueueing goes on."""
        with jobs.pause("math"):
            await double.enqueue(1)
            with jobs.pause("math"):
                assert len(await jobs.drain()) == 0
            assert len(await jobs.drain()) == 0
        assert len(await jobs.drain()) == 1

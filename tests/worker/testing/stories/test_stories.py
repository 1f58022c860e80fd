"""The same stories with the kit and with a real worker. Each ends the same."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError

import db
from tests.servers import Observer
from tests.worker.testing import note_tasks
from tests.worker.testing.note_tasks import notes, write
from tests.worker.testing.stories import story_tasks as tasks
from tests.worker.testing.stories.worlds import World, kit_world, real_world
from worker import Broker, Job, JobFailed, JobStatus
from worker.errors import EnqueueError
from worker.ledger import Ledger


@pytest.fixture(params=["kit", "real"])
async def world(
    request: pytest.FixtureRequest, database_url: str, postgres: Observer, redis_url: str, broker: Broker
) -> AsyncIterator[World]:
    """Where the story happens. The database has the table `note`."""
    await postgres.execute("CREATE TABLE note (id serial PRIMARY KEY, words text UNIQUE)")
    database: db.Database[Any] = db.Database(database_url, default=True)
    entered = kit_world(database) if request.param == "kit" else real_world(redis_url)
    async with entered as world:
        yield world
    await database.dispose()


async def ended(job: Job[Any]) -> tuple[bool | None, Any, int | None]:
    """How a job has ended: whether well, its result or the text of its error, and its tries."""
    info = await job.info()
    assert info is not None, f"{job} is not known"
    assert info.status is JobStatus.complete
    result = info.result
    if isinstance(result, JobFailed):
        result = f"{result.type}: {result.message}"
    elif isinstance(result, BaseException):
        result = f"{type(result).__name__}: {result}".rstrip(": ")
    return info.success, result, info.tries


async def state(job: Job[Any]) -> str | None:
    """The state of the job's row."""
    row = await Ledger().latest(job.job_id)
    return None if row is None else str(row["state"])


class TestTransactions:
    async def test_a_commit_makes_a_job(self, world: World) -> None:
        async with db.scope():
            job = await tasks.note.enqueue("a")
            await write(await db.session(), "mine")
        await world.run()
        assert (await ended(job), await state(job)) == ((True, "A", 1), "done")
        assert await notes() == ["mine", "a"]

    async def test_a_rollback_makes_none(self, world: World) -> None:
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                job = await tasks.note.enqueue("a")
                raise ZeroDivisionError
        await world.run()
        assert (await job.info(), await notes()) == (None, [])

    async def test_a_rolled_back_savepoint_makes_none(self, world: World) -> None:
        async with db.scope():
            kept = await tasks.note.enqueue("kept")
            with pytest.raises(ZeroDivisionError):
                async with db.atomic("savepoint"):
                    lost = await tasks.note.enqueue("lost")
                    raise ZeroDivisionError
        await world.run()
        assert (await state(kept), await state(lost), await notes()) == ("done", None, ["kept"])

    async def test_an_early_commit_makes_its_jobs(self, world: World) -> None:
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                early = await tasks.note.enqueue("early")
                await db.commit()
                await tasks.note.enqueue("late")
                raise ZeroDivisionError
        await world.run()
        assert (await ended(early), await notes()) == ((True, "EARLY", 1), ["early"])

    async def test_many_jobs_of_one_call_run(self, world: World) -> None:
        async with db.scope():
            jobs = await tasks.note.enqueue_many([{"words": str(number)} for number in range(5)])
        await world.run()
        assert [(await ended(job))[1] for job in jobs] == ["0", "1", "2", "3", "4"]

    async def test_a_job_that_is_no_part_of_the_transaction_stays(self, world: World) -> None:
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                job = await tasks.echo.using(transactional=False).enqueue("a")
                raise ZeroDivisionError
        await world.run()
        assert (await ended(job), await state(job)) == ((True, "a", 1), None)

    async def test_a_job_outside_of_a_scope_runs(self, world: World) -> None:
        job = await tasks.note.enqueue("a")
        await world.run()
        assert (await ended(job), await state(job), await notes()) == ((True, "A", 1), "done", ["a"])

    async def test_a_job_from_a_thread_is_part_of_the_scope(self, world: World) -> None:
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                job = await asyncio.to_thread(tasks.note.enqueue_sync, "a")
                raise ZeroDivisionError
        async with db.scope():
            kept = await asyncio.to_thread(tasks.note.enqueue_sync, "b")
        await world.run()
        assert (await state(job), await state(kept), await notes()) == (None, "done", ["b"])

    async def test_a_plain_caller_cannot_block_the_loop(self, world: World) -> None:
        with pytest.raises(EnqueueError, match="would block the running event loop"):
            tasks.note.enqueue_sync("a")
        await world.run()
        assert await notes() == []


class TestChunks:
    async def test_each_job_of_a_chunk_has_its_result(self, world: World) -> None:
        async with db.scope():
            jobs = [await tasks.notes_together.enqueue(words=words) for words in ("a", "b", "c", "d")]
        await world.run()
        assert [await ended(job) for job in jobs] == [(True, words, 1) for words in "ABCD"]
        assert [await state(job) for job in jobs] == ["done"] * 4
        assert sorted(await notes()) == ["a", "b", "c", "d"]

    async def test_a_bad_job_of_a_chunk_fails_alone(self, world: World) -> None:
        jobs = [await tasks.notes_together.enqueue(words=words) for words in ("a", "bad", "c")]
        await world.run()
        assert [(await ended(job))[1] for job in jobs] == ["A", "ValueError: a bad note", "C"]
        assert [await state(job) for job in jobs] == ["done", "failed", "done"]
        assert sorted(await notes()) == ["a", "c"]

    async def test_a_second_delivery_of_a_job_of_a_chunk_has_no_effect(self, world: World) -> None:
        job, _ = [await tasks.notes_together.enqueue(words=words) for words in ("a", "b")]
        await world.run()
        await world.deliver_again(job.job_id)
        assert (await ended(job))[:2] == (True, "A")
        assert sorted(await notes()) == ["a", "b"]

    async def test_a_chunk_of_a_transaction_that_is_rolled_back_makes_none(self, world: World) -> None:
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                await tasks.notes_together.enqueue_many({"words": words} for words in ("a", "b"))
                raise ZeroDivisionError
        await world.run()
        assert await notes() == []

    async def test_a_chunked_task_takes_the_fields_of_its_calls(self, world: World) -> None:
        with pytest.raises(ValidationError):
            await tasks.notes_together.enqueue(word="a")
        await world.run()
        assert await notes() == []


class TestIds:
    async def test_an_id_is_taken_while_its_job_waits(self, world: World) -> None:
        async with db.scope():
            first = await tasks.note.using(job_id="one").enqueue("a")
            second = await tasks.note.using(job_id="one").enqueue("b")
        assert (first.is_new, second.is_new) == (True, False)
        await world.run()
        assert await notes() == ["a"]

    async def test_an_id_is_taken_while_a_result_is_kept(self, world: World) -> None:
        await tasks.echo.using(job_id="one").enqueue("a")
        await world.run()
        later = await tasks.echo.using(job_id="one").enqueue("b")
        assert (later.is_new, await later.result(timeout=5)) == (False, "a")

    async def test_an_id_is_taken_across_a_scope_and_none(self, world: World) -> None:
        assert (await tasks.echo.using(job_id="one").enqueue("a")).is_new
        async with db.scope():
            assert not (await tasks.echo.using(job_id="one").enqueue("b")).is_new
        await world.run()

    async def test_a_rolled_back_id_is_free(self, world: World) -> None:
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                await tasks.note.using(job_id="one").enqueue("a")
                raise ZeroDivisionError
        async with db.scope():
            assert (await tasks.note.using(job_id="one").enqueue("b")).is_new
        await world.run()
        assert await notes() == ["b"]

    async def test_the_id_of_an_aborted_job_is_free(self, world: World) -> None:
        job = await tasks.note.using(job_id="one", delay=60).enqueue("a")
        assert await job.abort(timeout=10)
        again = await tasks.note.using(job_id="one").enqueue("b")
        await world.run()
        assert (again.is_new, await ended(again), await notes()) == (True, (True, "B", 1), ["b"])


class TestArguments:
    async def test_types_arrive(self, world: World) -> None:
        at = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
        address = note_tasks.Address(street="Long 1", city="Rome")
        job = await tasks.types.enqueue(UUID(int=7), at, Decimal("1.10"), address, timedelta(hours=1), b"\xff")
        await world.run()
        expected = f"{UUID(int=7)} {at.isoformat()} 1.10 Rome 1:00:00 b'\\xff'"
        assert await ended(job) == (True, expected, 1)

    async def test_defaults_are_the_workers(self, world: World) -> None:
        job, other = await tasks.with_default.enqueue(2), await tasks.with_default.enqueue(2, factor=3)
        await world.run()
        assert ((await ended(job))[1], (await ended(other))[1]) == (20, 6)

    async def test_containers_arrive(self, world: World) -> None:
        job = await tasks.several.enqueue([1, 2], {"a": 3, "b": None})
        await world.run()
        assert await ended(job) == (True, 6, 1)

    async def test_a_wrong_argument_makes_no_job(self, world: World) -> None:
        with pytest.raises(ValidationError):
            await tasks.note.enqueue(7)  # type: ignore[arg-type]
        await world.run()
        assert await notes() == []

    async def test_an_unknown_argument_makes_no_job(self, world: World) -> None:
        with pytest.raises(ValidationError, match="wrods"):
            await tasks.note.enqueue(wrods="a")  # type: ignore[call-arg]
        await world.run()
        assert await notes() == []


class TestResults:
    async def test_a_model_comes_back_as_a_model(self, world: World) -> None:
        job = await tasks.label.enqueue("a")
        await world.run()
        assert await job.result(timeout=5) == tasks.Label(text="a", copies=2)

    async def test_none_is_a_result(self, world: World) -> None:
        job = await tasks.nothing.enqueue()
        await world.run()
        assert (await ended(job), await notes()) == ((True, None, 1), ["nothing"])

    async def test_a_result_that_is_no_json_fails_and_rolls_back(self, world: World) -> None:
        job = await tasks.unserialisable.enqueue()
        await world.run()
        success, error, _ = await ended(job)
        assert (success, await notes()) == (False, [])
        assert "serialize unknown type" in error

    async def test_a_result_that_is_too_large_fails_and_rolls_back(self, world: World) -> None:
        job = await tasks.too_large.enqueue()
        await world.run()
        success, error, _ = await ended(job)
        assert (success, await notes()) == (False, [])
        assert error.startswith("worker.errors.ResultTooLargeError")

    async def test_a_failed_job_raises_where_its_result_is_read(self, world: World) -> None:
        job = await tasks.fails.enqueue("a")
        await world.run()
        with pytest.raises(ValueError, match="a"):
            await job.result(timeout=5)


class TestOutcomes:
    async def test_an_exception_fails_and_rolls_back(self, world: World) -> None:
        async with db.scope():
            job = await tasks.fails.enqueue("a")
        await world.run()
        assert (await ended(job), await state(job), await notes()) == ((False, "ValueError: a", 1), "failed", [])

    async def test_a_failed_job_outside_of_a_scope_has_a_row(self, world: World) -> None:
        job = await tasks.fails.enqueue("a")
        await world.run()
        assert await state(job) == "failed"

    async def test_retries_leave_only_the_last_attempt(self, world: World) -> None:
        job = await tasks.fails_twice.enqueue()
        await world.run()
        assert (await ended(job), await notes()) == ((True, 3, 3), ["attempt 3"])

    async def test_tries_are_exhausted(self, world: World) -> None:
        job = await tasks.always_retries.enqueue()
        await world.run()
        success, error, tries = await ended(job)
        assert (success, tries, await state(job), await notes()) == (False, 2, "failed", [])
        assert error.startswith("worker.errors.TriesExhaustedError")

    async def test_an_error_to_retry_on_is_retried(self, world: World) -> None:
        job = await tasks.busy_once.enqueue()
        await world.run()
        assert await ended(job) == (True, 2, 2)

    async def test_another_error_is_not(self, world: World) -> None:
        job = await tasks.other_error.enqueue()
        await world.run()
        assert (await ended(job))[::2] == (False, 1)

    async def test_a_retry_may_wait(self, world: World) -> None:
        job = await tasks.retries_later.enqueue()
        await world.run()
        assert await ended(job) == (True, 2, 2)

    async def test_a_job_that_cancels_itself_fails(self, world: World) -> None:
        job = await tasks.cancels_itself.enqueue()
        await world.run()
        assert (await ended(job), await notes()) == ((False, "CancelledError", 1), [])

    async def test_a_job_that_exits_fails(self, world: World) -> None:
        job = await tasks.leaves.enqueue()
        await world.run()
        success, error, _ = await ended(job)
        assert (success, await notes()) == (False, [])
        assert "SystemExit" in error

    async def test_a_slow_job_times_out(self, world: World) -> None:
        job = await tasks.too_slow.enqueue()
        await world.run()
        expected = "TimeoutError: too_slow took longer than its timeout, 0.2 s"
        assert (await ended(job), await notes()) == ((False, expected, 1), [])

    async def test_a_caught_error_in_a_savepoint_is_no_failure(self, world: World) -> None:
        job = await tasks.swallows.enqueue("a")
        await world.run()
        assert (await ended(job))[0] is True
        assert await notes() == ["a", "a again"]

    async def test_a_caught_error_of_the_transaction_is_a_failure(self, world: World) -> None:
        job = await tasks.poisons.enqueue()
        await world.run()
        success, error, _ = await ended(job)
        assert success is False
        assert error.startswith("db.errors.PoisonedTransactionError")

    async def test_what_was_committed_early_stays(self, world: World) -> None:
        job = await tasks.commits_early.enqueue()
        await world.run()
        assert ((await ended(job))[0], await notes()) == (False, ["early"])

    async def test_an_aborted_job_does_not_run(self, world: World) -> None:
        async with db.scope():
            job = await tasks.note.using(delay=60).enqueue("a")
        assert await job.abort(timeout=10)
        await world.run()
        assert (await state(job), await notes()) == ("aborted", [])


class TestOnce:
    async def test_a_job_that_is_delivered_again_has_no_second_effect(self, world: World) -> None:
        async with db.scope():
            job = await tasks.note.enqueue("a")
        await world.run()
        await world.deliver_again(job.job_id)
        assert (await state(job), await notes()) == ("done", ["a"])
        assert (await job.result(timeout=5)) == "A"

    async def test_a_failed_job_that_is_delivered_again_fails_again(self, world: World) -> None:
        async with db.scope():
            job = await tasks.fails.enqueue("a")
        await world.run()
        await world.deliver_again(job.job_id)
        assert (await state(job), await notes()) == ("failed", [])

    async def test_effects_at_least_once_happen_again(self, world: World) -> None:
        async with db.scope():
            job = await tasks.note_at_least_once.enqueue()
        await world.run()
        await world.deliver_again(job.job_id)
        assert await notes() == ["at least once 0", "at least once 1"]


class TestChildren:
    async def test_a_jobs_child_runs(self, world: World) -> None:
        await tasks.parent.enqueue("a")
        await world.run()
        assert await notes() == ["a", "child of a"]

    async def test_a_failed_jobs_child_does_not(self, world: World) -> None:
        await tasks.parent.enqueue("a", then_fails=True)
        await world.run()
        assert await notes() == []


class TestCalls:
    async def test_a_job_knows_itself(self, world: World) -> None:
        job = await tasks.describes.using(job_id="me").enqueue()
        await world.run()
        assert await ended(job) == (True, ["describes", "arq:queue", 1, 0, "me"], 1)

    async def test_a_task_has_its_queue(self, world: World) -> None:
        job = await tasks.elsewhere.enqueue()
        await world.run()
        assert (await ended(job))[1] == "other"

    async def test_a_job_may_have_another_queue(self, world: World) -> None:
        job = await tasks.describes.using(queue="other").enqueue()
        await world.run()
        assert (await ended(job))[1][1] == "other"

    async def test_a_plain_function_runs(self, world: World) -> None:
        job = await tasks.plain.enqueue(1)
        await world.run()
        assert await ended(job) == (True, 2, 1)

    async def test_a_plain_function_knows_its_job(self, world: World) -> None:
        job = await tasks.plain_job.enqueue()
        await world.run()
        assert (await ended(job))[1] == "plain_job"

    async def test_a_plain_function_may_fail(self, world: World) -> None:
        job = await tasks.plain_fails.enqueue(1)
        await world.run()
        assert (await ended(job))[0] is False

    async def test_a_resource_is_injected(self, world: World) -> None:
        job = await tasks.with_resource.enqueue()
        await world.run()
        assert await ended(job) == (True, "a client", 1)

    async def test_a_missing_resource_fails_the_job(self, world: World) -> None:
        job = await tasks.missing_resource.enqueue()
        await world.run()
        assert (await ended(job))[0] is False

    async def test_a_callback_runs_after_the_commit(self, world: World) -> None:
        await tasks.runs_callbacks.enqueue()
        await world.run()
        assert await notes() == ["in the transaction", "after the commit"]


class TestTime:
    async def test_a_delayed_job_waits(self, world: World) -> None:
        job = await tasks.echo.using(delay=60).enqueue("a")
        await world.look()
        assert await job.status() is JobStatus.deferred

    async def test_a_short_delay_ends(self, world: World) -> None:
        job = await tasks.echo.using(delay=0.3).enqueue("a")
        await world.run()
        assert await ended(job) == (True, "a", 1)

    async def test_jobs_run_in_the_order_in_which_they_are_due(self, world: World) -> None:
        now = datetime.now(UTC)
        async with db.scope():
            for seconds in (1, 3, 2):
                await tasks.note.using(at=now - timedelta(seconds=seconds)).enqueue(str(seconds))
        await world.run()
        assert await notes() == ["3", "2", "1"]

"""The executor: one job from claim to outcome, on a real PostgreSQL, whatever goes wrong.

Each fault is made to happen, and the rows are counted afterwards. A backend that is left idle in a transaction fails
the test (see `database_url`).
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anyio
import arq
import asyncpg
import pytest
from pydantic import BaseModel, field_validator
from pydantic_core import from_json
from sqlalchemy import text

import db
import worker
from db.database import Database, default_database
from db.errors import DatabaseUnreachableError
from tests.commits import HeldCommits, held_commits
from tests.conftest import StartPostgres
from tests.servers import Observer
from tests.stopwatch import Stopwatch
from tests.waiting import eventually
from tests.worker.conftest import NOTES, Count, Execute, ExecutorHarness, Note, create_ledger
from worker import Retry, task
from worker.engine import rerun_policy as patience
from worker.engine.outcome import OutcomeKind
from worker.errors import TriesExhaustedError
from worker.message import Message

INSERT = text("INSERT INTO note (words) VALUES (:words)")


async def insert(session: db.AsyncSession, words: str = "a") -> None:
    await session.execute(INSERT, {"words": words})


@pytest.fixture
async def commits(database: Database[db.AsyncSession], postgres: Observer) -> AsyncIterator[HeldCommits]:
    """Each COMMIT of a new note blocks in the server until the test releases it."""
    async with held_commits(postgres, "note") as commits:
        yield commits


async def answer() -> int:
    return 42


class TestOutcome:
    async def test_a_job_that_returns_is_committed_with_its_result(self, execute: Execute, rows: Count) -> None:
        """The row is there, and the result is the value as JSON."""

        @task
        async def add(session: db.AsyncSession, words: str) -> dict[str, Any]:
            await insert(session, words)
            return {"words": words, "raw": b"\xff"}

        outcome = await execute(add, "a")
        assert (outcome.kind, outcome.error) == (OutcomeKind.COMPLETED, None)
        assert from_json(outcome.result) == {"words": "a", "raw": "_w=="}
        assert await rows() == 1

    async def test_a_job_that_raises_is_rolled_back(self, execute: Execute, rows: Count) -> None:
        """Its error is the outcome's."""

        @task
        async def fail(session: db.AsyncSession) -> None:
            await insert(session)
            raise ValueError("no")

        outcome = await execute(fail)
        assert outcome.kind is OutcomeKind.FAILED
        assert repr(outcome.error) == "ValueError('no')"
        assert await rows() == 0

    @pytest.mark.parametrize(("args", "kwargs"), [((), {}), (("x",), {}), ((1,), {"number": 2}), ((), {"number": "x"})])
    async def test_wrong_arguments_fail_before_a_session_is_opened(
        self, harness: ExecutorHarness, postgres: Observer, args: Any, kwargs: Any
    ) -> None:
        """A stock producer does not validate. The job fails without using the database."""

        @task
        async def count(session: db.AsyncSession, number: int) -> None:
            await insert(session)

        execution = harness.deliver(count, 1)
        execution.message = Message("1", count.name, args, kwargs, execution.message.enqueued_at)
        outcome = await harness.start(count, execution)
        assert outcome.kind is OutcomeKind.FAILED
        assert isinstance(outcome.error, ValueError | TypeError)
        assert await postgres.backends() == 0

    @pytest.mark.parametrize(
        ("args", "kwargs", "unknown"),
        [
            ((1,), {"other": 1}, "other"),
            ((1, 2), {}, "2 positional arguments"),
            ((), {"number": "x", "a": 1, "b": 2}, "a, b"),
            ((1,), {"session": 1}, "session"),
        ],
    )
    async def test_a_job_with_unknown_arguments_is_put_back(
        self, harness: ExecutorHarness, args: Any, kwargs: Any, unknown: str
    ) -> None:
        """Its producer may run newer code: the job waits for a worker that does, too."""

        @task
        async def count(session: db.AsyncSession, number: int) -> None: ...

        execution = harness.deliver(count, 1)
        execution.message = Message("1", count.name, args, kwargs, execution.message.enqueued_at)
        outcome = await harness.start(count, execution)
        assert outcome.kind is OutcomeKind.POSTPONED
        assert str(outcome.error) == f"{count.name}(number: int) does not take {unknown}"

    @pytest.mark.parametrize("error", [KeyError, SystemExit, KeyboardInterrupt])
    async def test_a_validator_that_raises_anything_fails_the_job_and_not_the_worker(
        self, harness: ExecutorHarness, error: type[BaseException]
    ) -> None:
        """Also `SystemExit` and `KeyboardInterrupt`."""

        class Broken(BaseModel):
            number: int

            @field_validator("number")
            @classmethod
            def check(cls, number: int) -> int:
                raise error(number)

        async def fn(broken: Any) -> None: ...

        fn.__annotations__["broken"] = Broken
        broken = task(fn)
        execution = harness.deliver(task(answer))
        execution.message = Message("1", broken.name, ({"number": 1},), {}, 1)
        outcome = await harness.start(broken, execution)
        assert (outcome.kind, type(outcome.error)) == (OutcomeKind.FAILED, error)

    @pytest.mark.parametrize(
        "result",
        [
            pytest.param(lambda: lambda: 0, id="a function"),
            pytest.param(lambda: Note(words="x"), id="an ORM object"),
            pytest.param(lambda: (number for number in range(3)), id="a generator"),
            pytest.param(lambda: "\udcff", id="a lone surrogate"),
            pytest.param(lambda: ValueError("x"), id="an exception"),
        ],
    )
    async def test_a_result_without_a_json_form_fails_the_job_and_rolls_it_back(
        self, execute: Execute, rows: Count, result: Callable[[], Any]
    ) -> None:
        """A6: the result is serialised before the COMMIT."""

        @task
        async def strange(session: db.AsyncSession) -> Any:
            await insert(session)
            return result()

        outcome = await execute(strange)
        assert (outcome.kind, type(outcome.error)) == (OutcomeKind.FAILED, TypeError)
        assert "JSON cannot express this" in str(outcome.error)
        assert await rows() == 0

    @pytest.mark.parametrize(
        "error",
        [
            SystemExit(3),
            KeyboardInterrupt(),
            GeneratorExit(),
            BaseException("bare"),
            asyncio.CancelledError("made up"),
            ExceptionGroup("group", [ValueError(1), OSError(2)]),
            StopAsyncIteration(),
            TimeoutError("the task's own"),
            ConnectionResetError("of some API"),
        ],
        ids=lambda error: type(error).__name__,
    )
    async def test_whatever_a_task_raises_fails_its_job_with_that_error(
        self, execute: Execute, rows: Count, error: BaseException
    ) -> None:
        """What would end a process ends the job; nothing is taken for a cancellation or a lost database."""

        @task
        async def fail(session: db.AsyncSession) -> None:
            await insert(session)
            raise error

        outcome = await execute(fail)
        assert (outcome.kind, outcome.error) == (OutcomeKind.FAILED, error)
        assert await rows() == 0

    async def test_a_tasks_own_timeouts_and_cancel_scopes_do_not_count_as_an_interruption(
        self, execute: Execute, rows: Count
    ) -> None:
        """A task that gave up waiting, by asyncio or anyio, and then raised has failed."""

        @task
        async def give_up(session: db.AsyncSession) -> None:
            await insert(session)
            with anyio.move_on_after(0.01):
                await asyncio.sleep(5)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await asyncio.sleep(5)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(asyncio.sleep(5), 0.01)
            with contextlib.suppress(ExceptionGroup):
                async with asyncio.TaskGroup() as group:
                    group.create_task(asyncio.sleep(5))
                    group.create_task(raise_value_error())
            raise LookupError("after all that")

        outcome = await execute(give_up)
        assert (outcome.kind, type(outcome.error)) == (OutcomeKind.FAILED, LookupError)
        assert await rows() == 0

    async def test_a_task_that_leaves_itself_cancelled_fails_after_one_run(self, execute: Execute, rows: Count) -> None:
        """Only a cancellation by the engine is an interruption."""
        runs = 0

        @task
        async def leaves_one(session: db.AsyncSession) -> None:
            nonlocal runs
            runs += 1
            await insert(session)
            await leave_a_cancellation()
            child = asyncio.create_task(asyncio.sleep(30))
            asyncio.get_running_loop().call_soon(child.cancel)
            await child

        @task
        async def last_act(session: db.AsyncSession) -> None:
            nonlocal runs
            runs += 1
            await insert(session)
            cancel_this_task()

        for each in (leaves_one, last_act):
            outcome = await execute(each)
            assert (outcome.kind, type(outcome.error)) == (OutcomeKind.FAILED, asyncio.CancelledError)
        assert runs == 2
        assert await rows() == 0

    async def test_an_error_that_touches_orm_state_when_printed_is_recorded_as_itself(
        self, execute: Execute, rows: Count
    ) -> None:
        """C7: it does not hide itself behind another error."""

        class AboutError(Exception):
            def __init__(self, note: Note) -> None:
                self.note = note
                super().__init__(note)

            def __str__(self) -> str:
                return f"about {self.note.words}"

        @task
        async def fail(session: db.AsyncSession) -> None:
            note = Note(words="x")
            session.add(note)
            await session.flush()
            session.expire(note)
            raise AboutError(note)

        outcome = await execute(fail)
        assert (outcome.kind, type(outcome.error)) == (OutcomeKind.FAILED, AboutError)
        assert await rows() == 0


async def raise_value_error() -> None:
    raise ValueError


def cancel_this_task() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def leave_a_cancellation() -> None:
    """Leave this task's count of cancellations raised, as a `TaskGroup` may before Python 3.13."""
    cancel_this_task()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


class TestPoisonedTransaction:
    async def test_a_swallowed_database_error_fails_the_job(self, execute: Execute, rows: Count) -> None:
        """A1: PostgreSQL would answer the COMMIT with ROLLBACK, without an error."""

        @task
        async def swallow(session: db.AsyncSession) -> str:
            await insert(session)
            with contextlib.suppress(Exception):
                await session.execute(text("SELECT 1/0"))
            return "done"

        outcome = await execute(swallow)
        assert (outcome.kind, type(outcome.error)) == (OutcomeKind.FAILED, db.PoisonedTransactionError)
        assert await rows() == 0

    async def test_a_database_error_swallowed_around_a_savepoint_does_not_fail_the_job(
        self, execute: Execute, rows: Count
    ) -> None:
        """A1: inside `begin_nested` only the savepoint is lost."""

        @task
        async def swallow(session: db.AsyncSession) -> str:
            await insert(session)
            with contextlib.suppress(Exception):
                async with session.begin_nested():
                    await session.execute(text("SELECT 1/0"))
            return "done"

        outcome = await execute(swallow)
        assert outcome.kind is OutcomeKind.COMPLETED
        assert await rows() == 1


class Attempts:
    """Counts how often a body has begun, and lets it do something else each time."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> int:
        self.made += 1
        return self.made


class TestConflicts:
    async def test_a_write_skew_pair_completes_in_one_and_two_attempts(
        self, harness: ExecutorHarness, rows: Count
    ) -> None:
        """A4: of two serializable transactions that exclude each other, one runs again and sees the other."""
        both = asyncio.Barrier(2)
        attempts: dict[str, int] = {}

        @task
        async def claim(session: db.AsyncSession, words: str) -> int:
            attempts[words] = attempts.get(words, 0) + 1
            await session.connection(execution_options={"isolation_level": "SERIALIZABLE"})
            seen = (await session.execute(text("SELECT count(*) FROM note"))).scalar_one()
            if attempts[words] == 1:
                await both.wait()
            await insert(session, words)
            return int(seen)

        outcomes = await asyncio.gather(harness.run(claim, "a"), harness.run(claim, "b"))
        assert [outcome.kind for outcome in outcomes] == [OutcomeKind.COMPLETED] * 2
        assert sorted(attempts.values()) == [1, 2]
        assert sorted(outcome.result for outcome in outcomes) == [b"0", b"1"]
        assert await rows() == 2

    async def test_a_deferred_constraint_violated_at_commit_fails_the_job_at_once(
        self, execute: Execute, rows: Count
    ) -> None:
        """A4: an integrity error at COMMIT is final: one attempt, no row."""
        attempts = Attempts()

        @task
        async def dangle(session: db.AsyncSession) -> None:
            attempts()
            await insert(session)
            await session.execute(text("INSERT INTO reply VALUES (999)"))

        outcome = await execute(dangle)
        assert outcome.kind is OutcomeKind.FAILED
        assert "violates foreign key constraint" in repr(outcome.error)
        assert attempts.made == 1
        assert await rows() == 0

    async def test_a_job_that_lost_a_deadlock_is_run_again(self, harness: ExecutorHarness, postgres: Observer) -> None:
        """40P01: of two jobs that lock two rows in turn, PostgreSQL cancels one, and that one runs again."""
        await postgres.execute("INSERT INTO note (words) VALUES ('a'), ('b')")
        both = asyncio.Barrier(2)
        attempts: dict[str, int] = {}

        @task
        async def lock(session: db.AsyncSession, first: str, second: str) -> None:
            attempts[first] = attempts.get(first, 0) + 1
            update = text("UPDATE note SET id = id + 10 WHERE words = :words")
            await session.execute(update, {"words": first})
            if attempts[first] == 1:
                await both.wait()
            await session.execute(update, {"words": second})

        outcomes = await asyncio.gather(harness.run(lock, "a", "b"), harness.run(lock, "b", "a"))
        assert [outcome.kind for outcome in outcomes] == [OutcomeKind.COMPLETED] * 2
        assert sorted(attempts.values()) == [1, 2]
        assert await postgres.fetchval("SELECT max(id) FROM note") == 22

    async def test_a_job_that_does_not_wait_for_a_lock_runs_again_until_it_is_free(
        self, execute: Execute, postgres: Observer, database_url: str
    ) -> None:
        """55P03, for example by NOWAIT."""
        await postgres.execute("INSERT INTO note (words) VALUES ('a')")
        attempts = Attempts()
        async with holding_a_lock(database_url) as release:

            @task
            async def take(session: db.AsyncSession) -> None:
                if attempts() == 3:
                    await release()
                await session.execute(text("SELECT * FROM note FOR UPDATE NOWAIT"))

            outcome = await execute(take)
        assert (outcome.kind, attempts.made) == (OutcomeKind.COMPLETED, 3)

    async def test_a_conflict_that_goes_on_counts_as_one_try(
        self, execute: Execute, postgres: Observer, database_url: str
    ) -> None:
        """After five reruns the job is put back with a backoff; when its tries are used up, it fails."""
        await postgres.execute("INSERT INTO note (words) VALUES ('a')")
        attempts = Attempts()

        @task(max_tries=2)
        async def take(session: db.AsyncSession) -> None:
            attempts()
            await session.execute(text("SELECT * FROM note FOR UPDATE NOWAIT"))

        async with holding_a_lock(database_url):
            outcome = await execute(take)
            assert (outcome.kind, attempts.made) == (OutcomeKind.RETRIED, 6)
            assert 0.75 <= outcome.delay <= 1.25
            outcome = await execute(take, tries=1)
            assert (outcome.kind, attempts.made) == (OutcomeKind.FAILED, 12)
            assert "could not obtain lock" in str(outcome.error)

    async def test_retry_on_does_not_make_a_conflict_cost_a_try(
        self, execute: Execute, postgres: Observer, database_url: str
    ) -> None:
        """``retry_on=(Exception,)`` leaves the database's transient errors free."""
        await postgres.execute("INSERT INTO note (words) VALUES ('a')")
        attempts = Attempts()
        async with holding_a_lock(database_url) as release:

            @task(retry_on=(Exception,))
            async def take(session: db.AsyncSession) -> None:
                if attempts() == 2:
                    await release()
                await session.execute(text("SELECT * FROM note FOR UPDATE NOWAIT"))

            outcome = await execute(take)
        assert (outcome.kind, attempts.made) == (OutcomeKind.COMPLETED, 2)


@contextlib.asynccontextmanager
async def holding_a_lock(url: str) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """All rows of `note` are locked until the block ends, or what it is given is called."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    transaction = connection.transaction()
    await transaction.start()
    await connection.execute("SELECT * FROM note FOR UPDATE")
    released = False

    async def release() -> None:
        nonlocal released
        if not released:
            released = True
            await transaction.rollback()

    try:
        yield release
    finally:
        await release()
        await connection.close()


class TestEarlyCommit:
    async def test_what_a_job_commits_early_stays_and_is_logged_once_a_task(
        self, execute: Execute, rows: Count, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A5: it stays even if the job fails after it."""
        number = Attempts()

        @task
        async def early(session: db.AsyncSession) -> None:
            await insert(session, f"early {number()}")
            await session.commit()
            await insert(session, "late")
            raise ValueError

        for _ in range(3):
            assert (await execute(early)).kind is OutcomeKind.FAILED
        assert await rows() == 3
        warnings = [record.message for record in caplog.records if "commits before it returns" in record.message]
        assert len(warnings) == 1

    async def test_a_commit_sent_as_text_is_refused(self, execute: Execute, rows: Count) -> None:
        """A5: a job that raises after it leaves nothing, however often it runs."""

        @task(retry_on=(ValueError,))
        async def raw(session: db.AsyncSession) -> None:
            await insert(session)
            await session.execute(text("COMMIT"))
            raise ValueError

        for tries in range(2):
            outcome = await execute(raw, tries=tries)
            assert (outcome.kind, type(outcome.error)) == (OutcomeKind.FAILED, db.RawTransactionError)
        assert await rows() == 0


class TestLostConnections:
    async def test_a_job_whose_backend_was_killed_in_its_transaction_runs_again_for_free(
        self, execute: Execute, postgres: Observer, rows: Count
    ) -> None:
        """A7: it runs again at once, and its effects are there once."""
        attempts = Attempts()

        @task(max_tries=1)
        async def add(session: db.AsyncSession) -> None:
            await insert(session)
            if attempts() == 1:
                await postgres.terminate_backends()
            await insert(session, "b")

        outcome = await execute(add)
        assert (outcome.kind, attempts.made) == (OutcomeKind.COMPLETED, 2)
        assert await rows() == 2

    async def test_stale_connections_in_the_pool_fail_no_job(
        self, harness: ExecutorHarness, postgres: Observer, rows: Count
    ) -> None:
        """After a restart of the server the pool's connections are dead, and no job fails."""

        @task(max_tries=1)
        async def add(session: db.AsyncSession, words: str) -> None:
            await insert(session, words)
            await session.execute(text("SELECT pg_sleep(0.05)"))

        warm = await asyncio.gather(*(harness.run(add, f"warm {number}") for number in range(5)))
        assert await postgres.terminate_backends() == 5
        cold = await asyncio.gather(*(harness.run(add, f"cold {number}") for number in range(10)))
        assert {outcome.kind for outcome in (*warm, *cold)} == {OutcomeKind.COMPLETED}
        assert await rows() == 15

    async def test_a_database_that_is_down_for_seconds_costs_no_try(self, own_postgres: StartPostgres) -> None:
        """Running jobs and jobs that start meanwhile complete when the server is back."""
        server = own_postgres()
        begun = asyncio.Event()

        @task(max_tries=1)
        async def add(session: db.AsyncSession, words: str) -> None:
            await insert(session, words)
            begun.set()
            await session.execute(text("SELECT pg_sleep(0.3)"))

        async with working_on(server.url) as harness:
            jobs = [harness.start(add, harness.deliver(add, f"before {number}")) for number in range(5)]
            await begun.wait()
            await asyncio.to_thread(server.kill)
            jobs += [harness.start(add, harness.deliver(add, f"during {number}")) for number in range(5)]
            await asyncio.sleep(2)
            await asyncio.to_thread(server.restart)
            outcomes = await asyncio.gather(*jobs)
            assert [outcome.error for outcome in outcomes] == [None] * 10
            assert await notes() == 10

    async def test_a_database_without_free_connections_is_waited_for(self, own_postgres: StartPostgres) -> None:
        """53300: the job waits until a connection is free, at no cost."""
        server = own_postgres(max_connections=8)

        @task(max_tries=1)
        async def add(session: db.AsyncSession) -> None:
            await insert(session)

        async with working_on(server.url) as harness, contextlib.AsyncExitStack() as others:
            await default_database().dispose()
            with contextlib.suppress(asyncpg.TooManyConnectionsError):
                while True:
                    other = await asyncpg.connect(server.url.replace("+asyncpg", ""))
                    others.push_async_callback(other.close)
            job = harness.start(add, harness.deliver(add))
            await asyncio.sleep(1)
            assert not job.done()
            await others.aclose()
            assert (await job).kind is OutcomeKind.COMPLETED
            assert await notes() == 1

    async def test_the_lease_of_a_job_is_granted_anew_for_each_rerun(self, harness: ExecutorHarness) -> None:
        """A job that runs again after database trouble has the time of a whole attempt."""
        begun: list[float] = []

        @task
        async def need() -> None:
            begun.append(execution.attempt_began)
            if len(begun) == 1:
                raise DatabaseUnreachableError("database", "away")

        execution = harness.deliver(need)
        claimed = execution.attempt_began
        assert (await harness.start(need, execution)).kind is OutcomeKind.COMPLETED
        assert claimed < begun[0] < begun[1]

    @pytest.mark.parametrize("way", ["hidden", "plain"])
    async def test_a_job_that_terminates_its_own_backend_costs_a_try(
        self, execute: Execute, rows: Count, postgres: Observer, monkeypatch: pytest.MonkeyPatch, way: str
    ) -> None:
        """At once where its statement shows that; otherwise after five free reruns."""
        monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.01)
        await postgres.execute("CREATE FUNCTION quietly() RETURNS bool RETURN pg_terminate_backend(pg_backend_pid())")
        attempts = Attempts()

        @task(max_tries=2)
        async def ends_its_backend(session: db.AsyncSession) -> None:
            attempts()
            await insert(session)
            ends = "quietly()" if way == "hidden" else "pg_terminate_backend(pg_backend_pid())"
            await session.execute(text(f"SELECT {ends}"))

        outcome = await execute(ends_its_backend)
        assert (outcome.kind, attempts.made) == (OutcomeKind.RETRIED, 6 if way == "hidden" else 1)
        assert (await execute(ends_its_backend, tries=1)).kind is OutcomeKind.FAILED
        assert await rows() == 0

    @pytest.mark.usefixtures("database")
    async def test_a_statement_that_outlasts_the_drivers_timeout_costs_a_try_in_the_end(
        self, database_url: str, rows: Count, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The server takes connections, so it is not waited for as in an outage."""
        monkeypatch.setattr(patience, "LONGEST_PAUSE", 0.01)
        attempts = Attempts()

        @task(max_tries=1)
        async def slow(session: db.AsyncSession) -> None:
            attempts()
            await session.execute(text("SET LOCAL statement_timeout = 0"))
            await insert(session)
            await session.execute(text("SELECT pg_sleep(30)"))

        database = Database[db.AsyncSession](database_url, default=True, statement_timeout=0.2, connect_timeout=0.2)
        harness = ExecutorHarness()
        async with asyncio.timeout(20):
            outcome = await harness.run(slow)
        harness.caller.close()
        await database.dispose()
        assert (outcome.kind, attempts.made) == (OutcomeKind.FAILED, 6)
        assert await rows() == 0

    async def test_a_job_that_sits_idle_in_its_transaction_for_too_long_costs_a_try(
        self, execute: Execute, rows: Count, postgres: Observer
    ) -> None:
        """25P03: it would do so again. The error says what to do."""
        attempts = Attempts()

        @task(max_tries=1)
        async def idle(session: db.AsyncSession) -> None:
            attempts()
            await session.execute(text("SET LOCAL idle_in_transaction_session_timeout = 50"))
            await insert(session)
            await eventually(postgres.backends, equals=0)
            await session.execute(text("SELECT 1"))

        outcome = await execute(idle)
        assert (outcome.kind, attempts.made) == (OutcomeKind.FAILED, 1)
        assert isinstance(outcome.error, db.ConnectionEndedError)
        assert "session.close()" in str(outcome.error)
        assert await rows() == 0


@contextlib.asynccontextmanager
async def working_on(url: str) -> AsyncIterator[ExecutorHarness]:
    """An executor on a server of the test's own, as the default database, with the table `note`."""
    database = Database(url, default=True, pre_ping=False)
    harness = ExecutorHarness()
    try:
        async with db.scope():
            await (await db.session()).execute(text(NOTES.split(";")[0]))
        await create_ledger(url)
        yield harness
    finally:
        harness.caller.close()
        await database.dispose()


async def notes() -> int:
    """How many rows `note` has in the default database."""
    async with db.scope():
        return int((await (await db.session()).execute(text("SELECT count(*) FROM note"))).scalar_one())


class TestReadOnly:
    async def test_a_database_that_turned_read_only_is_waited_for(
        self, execute: Execute, postgres: Observer, rows: Count
    ) -> None:
        """25006: the job runs again on new connections until the server takes writes, at no cost."""
        attempts = Attempts()
        name = await postgres.fetchval("SELECT current_database()")
        await postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")

        @task(max_tries=1)
        async def add(session: db.AsyncSession) -> None:
            if attempts() == 3:
                await postgres.execute("SET default_transaction_read_only = off")
                await postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
            await insert(session)

        outcome = await execute(add)
        assert outcome.kind is OutcomeKind.COMPLETED
        assert attempts.made in (3, 4)
        assert await rows() == 1

    async def test_a_write_in_the_tasks_own_read_only_transaction_fails_at_once(
        self, execute: Execute, rows: Count, postgres: Observer
    ) -> None:
        """It costs no connection."""
        attempts = Attempts()
        backends: set[int] = set()

        @task(max_tries=1)
        async def add(session: db.AsyncSession, how: str) -> None:
            attempts()
            backends.add((await session.execute(text("SELECT pg_backend_pid()"))).scalar_one())
            match how:
                case "statement":
                    await session.execute(text("SET TRANSACTION READ ONLY"))
                case "option":
                    await db.commit()
                    await session.connection(execution_options={"postgresql_readonly": True})
                case "function":
                    await session.execute(text("SELECT quietly()"))
            await insert(session)

        await postgres.execute(
            "CREATE FUNCTION quietly() RETURNS text RETURN set_config('transaction_read_only', 'on', true)"
        )
        for number, how in enumerate(("statement", "option", "function"), start=1):
            outcome = await execute(add, how)
            assert (outcome.kind, attempts.made) == (OutcomeKind.FAILED, number)
            assert "read-only" in str(outcome.error)
        assert len(backends) == 1
        assert await rows() == 0


class TestRetry:
    @pytest.mark.parametrize(
        ("asked", "delay"),
        [
            (Retry(), 0.0),
            (Retry(defer=30), 30.0),
            (arq.Retry(), 0.0),
            (arq.Retry(defer=1.5), 1.5),
            (type("Later", (arq.Retry,), {})(defer=7), 7.0),
        ],
        ids=repr,
    )
    async def test_retry_rolls_back_and_puts_the_job_back_with_its_delay(
        self, execute: Execute, rows: Count, asked: Exception, delay: float
    ) -> None:
        """`worker.Retry` as well as arq's."""

        @task
        async def again(session: db.AsyncSession) -> None:
            await insert(session)
            raise asked

        outcome = await execute(again)
        assert (outcome.kind, outcome.delay) == (OutcomeKind.RETRIED, delay)
        assert await rows() == 0

    async def test_retry_in_the_last_try_fails_the_job(self, execute: Execute) -> None:
        """The error says how to give it more tries."""

        @task(max_tries=4)
        async def again() -> None:
            raise Retry(defer=1)

        assert [(await execute(again, tries=tries)).kind for tries in range(3)] == [OutcomeKind.RETRIED] * 3
        outcome = await execute(again, tries=3)
        assert (outcome.kind, type(outcome.error)) == (OutcomeKind.FAILED, TriesExhaustedError)
        assert "gave up after 4 tries" in str(outcome.error)
        assert "max_tries" in str(outcome.error)

    async def test_an_exception_in_retry_on_is_retried_with_a_growing_backoff(
        self, execute: Execute, rows: Count
    ) -> None:
        """The last try fails with the exception itself."""

        @task(retry_on=(LookupError,), max_tries=3)
        async def flaky(session: db.AsyncSession) -> None:
            await insert(session)
            raise KeyError("k")

        first, second, third = [await execute(flaky, tries=tries) for tries in range(3)]
        assert (first.kind, second.kind, third.kind) == (OutcomeKind.RETRIED, OutcomeKind.RETRIED, OutcomeKind.FAILED)
        assert 0.75 <= first.delay <= 1.25
        assert 1.5 <= second.delay <= 2.5
        assert repr(third.error) == "KeyError('k')"
        assert await rows() == 0

    async def test_an_exception_not_in_retry_on_fails_the_job(self, execute: Execute) -> None:
        """An exception that is not in `retry_on` fails the job at its first attempt."""

        @task(retry_on=(LookupError,))
        async def fail() -> None:
            raise ValueError

        assert (await execute(fail)).kind is OutcomeKind.FAILED

    async def test_an_exception_group_is_retried_if_all_its_members_are(self, execute: Execute) -> None:
        """A `TaskGroup` raises such a group."""

        @task(retry_on=(LookupError,))
        async def fail(final: bool) -> None:
            others: list[Exception] = [ValueError()] if final else []
            raise ExceptionGroup("g", [KeyError(), ExceptionGroup("h", [IndexError()]), *others])

        assert (await execute(fail, False)).kind is OutcomeKind.RETRIED
        assert (await execute(fail, True)).kind is OutcomeKind.FAILED

    async def test_a_task_without_max_tries_has_the_workers(self, execute: Execute) -> None:
        """A task that does not say has as many tries as the executor was made with (here 3)."""

        @task
        async def again() -> int:
            raise Retry

        assert (await execute(again, tries=1)).kind is OutcomeKind.RETRIED
        assert (await execute(again, tries=2)).kind is OutcomeKind.FAILED

    async def test_the_job_context_counts_attempts_from_one(self, execute: Execute) -> None:
        """Reruns after database trouble are the same attempt."""

        @task
        async def which(job: worker.JobContext) -> int:
            return job.attempt

        assert (await execute(which, tries=0)).result == b"1"
        assert (await execute(which, tries=2)).result == b"3"


class TestTimeout:
    async def test_a_coroutine_past_its_timeout_is_cancelled_and_rolled_back(
        self, execute: Execute, rows: Count, postgres: Observer
    ) -> None:
        """A body that takes too long is cancelled on the server too and rolled back; the error names the limit."""

        @task(timeout=0.2)
        async def slow(session: db.AsyncSession) -> None:
            await insert(session)
            await session.execute(text("SELECT pg_sleep(30)"))

        watch = Stopwatch()
        outcome = await execute(slow)
        assert watch.seconds_running < 3
        assert (outcome.kind, type(outcome.error)) == (OutcomeKind.FAILED, TimeoutError)
        assert "slow took longer than its timeout, 0.2 s" in str(outcome.error)
        assert await rows() == 0
        await eventually(lambda: postgres.backends("active"), equals=0)

    async def test_the_timeout_does_not_include_the_commit(
        self, harness: ExecutorHarness, commits: HeldCommits, rows: Count
    ) -> None:
        """A COMMIT that takes longer than the timeout is waited for, and reported as what it is."""

        @task(timeout=1)
        async def add(session: db.AsyncSession) -> str:
            await insert(session)
            return "done"

        job = harness.start(add, harness.deliver(add))
        await commits.begun()
        await asyncio.sleep(1.1)
        await commits.let_go()
        outcome = await job
        assert (outcome.kind, outcome.result) == (OutcomeKind.COMPLETED, b'"done"')
        assert await rows() == 1

    async def test_a_task_without_a_timeout_has_the_workers(self, harness: ExecutorHarness) -> None:
        """A task without a timeout of its own has the executor's."""
        harness.timeout = 0.1

        @task
        async def slow() -> None:
            await asyncio.sleep(30)

        assert "its timeout, 0.1 s" in str((await harness.run(slow)).error)

    async def test_a_timeout_is_retried_if_retry_on_names_timeout_error(self, execute: Execute) -> None:
        """Otherwise it fails the job, as any other exception."""

        @task(timeout=0.05, retry_on=(TimeoutError,))
        async def slow() -> None:
            await asyncio.sleep(30)

        assert (await execute(slow)).kind is OutcomeKind.RETRIED

    async def test_the_traceback_of_a_timeout_shows_the_line_that_took_so_long(self, execute: Execute) -> None:
        """It is the traceback of the error's cause."""

        @task(timeout=0.05)
        async def slow() -> None:
            await the_slow_part()

        error = (await execute(slow)).error
        assert error is not None
        assert error.__cause__ is not None
        names = []
        trace = error.__cause__.__traceback__
        while trace is not None:
            names.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        assert "the_slow_part" in names

    @pytest.mark.parametrize("leaves_one", [False, True])
    async def test_a_task_that_swallows_its_timeout_and_returns_is_rolled_back(
        self, execute: Execute, rows: Count, leaves_one: bool
    ) -> None:
        """It returned after its time limit, so it fails."""

        @task(timeout=0.05)
        async def careless(session: db.AsyncSession) -> str:
            await insert(session)
            if leaves_one:
                await leave_a_cancellation()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(30)
            return "done"

        outcome = await execute(careless)
        assert (outcome.kind, type(outcome.error)) == (OutcomeKind.FAILED, TimeoutError)
        assert await rows() == 0

    async def test_a_task_that_blocks_the_event_loop_past_its_timeout_is_rolled_back(
        self, execute: Execute, rows: Count
    ) -> None:
        """It returns without another await, so it could not be cancelled."""

        @task(timeout=0.05)
        async def blocks(session: db.AsyncSession) -> str:
            await insert(session)
            time.sleep(0.2)  # noqa: ASYNC251 - it is what the test is about
            return "done"

        outcome = await execute(blocks)
        assert (outcome.kind, type(outcome.error)) == (OutcomeKind.FAILED, TimeoutError)
        assert await rows() == 0

    async def test_a_timeout_after_a_tasks_own_cancellation_is_not_taken_for_an_interruption(
        self, execute: Execute
    ) -> None:
        """The task's count of cancellations stays raised."""

        @task(timeout=0.05)
        async def late() -> None:
            await leave_a_cancellation()
            await asyncio.sleep(30)

        outcome = await execute(late)
        assert (outcome.kind, type(outcome.error)) == (OutcomeKind.FAILED, TimeoutError)

    async def test_a_connection_broken_by_a_timeout_does_not_make_the_job_run_again(
        self, execute: Execute, postgres: Observer
    ) -> None:
        """It is not taken for the database's trouble."""
        runs = 0

        @task(timeout=0.3)
        async def careless(session: db.AsyncSession) -> None:
            nonlocal runs
            runs += 1
            await insert(session)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(30)
            await postgres.terminate_backends()
            await insert(session)

        outcome = await execute(careless)
        assert (outcome.kind, type(outcome.error)) == (OutcomeKind.FAILED, TimeoutError)
        assert runs == 1

    async def test_a_sync_task_past_its_timeout_stops_at_its_next_statement(
        self, execute: Execute, rows: Count
    ) -> None:
        """A thread cannot be cancelled: its slot stays taken until it returns, its next statement raises, and its
        scope ends rolled back."""
        seen: list[str] = []

        @task(timeout=0.2)
        def slow(session: db.Session) -> str:
            session.execute(INSERT, {"words": "a"})
            time.sleep(0.8)
            try:
                session.execute(INSERT, {"words": "b"})
            except TimeoutError as error:
                seen.append(str(error))
            return "done"

        watch = Stopwatch()
        outcome = await execute(slow)
        assert watch.seconds >= 0.8
        assert (outcome.kind, type(outcome.error)) == (OutcomeKind.FAILED, TimeoutError)
        assert seen == [f"{slow.name} was stopped"]
        assert await rows() == 0

    async def test_a_sync_task_past_its_timeout_cannot_commit(self, execute: Execute, rows: Count) -> None:
        """Not even by an early commit."""

        @task(timeout=0.1)
        def slow(session: db.Session) -> None:
            session.execute(INSERT, {"words": "a"})
            time.sleep(0.4)
            session.commit()

        assert (await execute(slow)).kind is OutcomeKind.FAILED
        assert await rows() == 0


async def the_slow_part() -> None:
    await asyncio.sleep(30)


class TestCancelledByTheEngine:
    @pytest.mark.parametrize("kind", [OutcomeKind.INTERRUPTED, OutcomeKind.ABORTED, OutcomeKind.ABANDONED])
    async def test_a_cancelled_job_has_the_outcome_that_it_was_cancelled_with(
        self, harness: ExecutorHarness, postgres: Observer, rows: Count, kind: OutcomeKind
    ) -> None:
        """The body ends once, its statement is stopped on the server, and neither row nor lock is left."""

        @task
        async def slow(session: db.AsyncSession) -> None:
            await insert(session, "unique")
            await session.execute(text("SELECT pg_sleep(30)"))

        execution = harness.deliver(slow)
        job = harness.start(slow, execution)
        await eventually(lambda: postgres.backends("active"), equals=1)
        execution.cancelled_as = kind
        job.cancel()
        outcome = await job
        assert outcome.kind is kind
        assert await rows() == 0
        await eventually(lambda: postgres.backends("active"), equals=0)
        async with asyncio.timeout(1):
            await postgres.execute("INSERT INTO note (words) VALUES ('unique')")

    async def test_a_job_cancelled_in_its_commit_has_completed(
        self, harness: ExecutorHarness, commits: HeldCommits, rows: Count
    ) -> None:
        """A3: a COMMIT once sent is waited for, and its result is reported."""

        @task
        async def add(session: db.AsyncSession) -> str:
            await insert(session)
            return "done"

        job = harness.start(add, harness.deliver(add))
        await commits.begun()
        job.cancel()
        await asyncio.sleep(0)
        await commits.let_go()
        outcome = await job
        assert (outcome.kind, outcome.result) == (OutcomeKind.COMPLETED, b'"done"')
        assert await rows() == 1

    async def test_a_job_whose_commit_fails_while_it_is_cancelled_is_interrupted(
        self, harness: ExecutorHarness, commits: HeldCommits, rows: Count
    ) -> None:
        """A3: success is reported if and only if the row exists."""

        @task
        async def dangle(session: db.AsyncSession) -> None:
            await insert(session)
            await session.execute(text("INSERT INTO reply VALUES (999)"))

        execution = harness.deliver(dangle)
        job = harness.start(dangle, execution)
        await commits.begun()
        execution.cancelled_as = OutcomeKind.INTERRUPTED
        job.cancel()
        await asyncio.sleep(0)
        await commits.let_go()
        assert (await job).kind is OutcomeKind.INTERRUPTED
        assert await rows() == 0

    async def test_a_task_that_raises_while_it_is_interrupted_runs_again(
        self, harness: ExecutorHarness, rows: Count
    ) -> None:
        """It was interrupted, and has not failed."""
        begun = asyncio.Event()

        @task
        async def stubborn(session: db.AsyncSession) -> None:
            await insert(session)
            begun.set()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                raise RuntimeError("stopped") from None

        execution = harness.deliver(stubborn)
        job = harness.start(stubborn, execution)
        await begun.wait()
        execution.cancelled_as = OutcomeKind.INTERRUPTED
        job.cancel()
        assert (await job).kind is OutcomeKind.INTERRUPTED
        assert await rows() == 0

    async def test_a_task_that_returns_although_it_is_interrupted_has_completed(
        self, harness: ExecutorHarness, rows: Count
    ) -> None:
        """What it saves when it is told to stop is committed."""
        begun = asyncio.Event()

        @task
        async def thorough(session: db.AsyncSession) -> str:
            await insert(session)
            begun.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(30)
            return "saved"

        job = harness.start(thorough, harness.deliver(thorough))
        await begun.wait()
        job.cancel()
        assert (await job).kind is OutcomeKind.COMPLETED
        assert await rows() == 1

    async def test_a_job_waiting_for_its_database_is_interrupted_at_once(self, harness: ExecutorHarness) -> None:
        """Between two attempts no body runs."""
        Database("postgresql+asyncpg://nobody@127.0.0.1:1/none", default=True)

        @task
        async def ask(session: db.AsyncSession) -> None:
            await insert(session)

        execution = harness.deliver(ask)
        job = harness.start(ask, execution)
        await asyncio.sleep(0.5)
        assert not job.done()
        execution.cancelled_as = OutcomeKind.INTERRUPTED
        job.cancel()
        async with asyncio.timeout(1):
            assert (await job).kind is OutcomeKind.INTERRUPTED

    async def test_an_interrupted_sync_task_stops_at_its_next_statement_and_is_rolled_back(
        self, harness: ExecutorHarness, rows: Count
    ) -> None:
        """A thread cannot be cancelled, so it is waited for."""
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()

        @task
        def busy(session: db.Session) -> None:
            loop.call_soon_threadsafe(begun.set)
            for number in range(1000):
                session.execute(INSERT, {"words": str(number)})
                time.sleep(0.01)

        execution = harness.deliver(busy)
        job = harness.start(busy, execution)
        await begun.wait()
        execution.cancelled_as = OutcomeKind.INTERRUPTED
        job.cancel()
        async with asyncio.timeout(3):
            assert (await job).kind is OutcomeKind.INTERRUPTED
        assert await rows() == 0


class TestManyFaultsAtOnce:
    async def test_of_many_faults_at_once_only_the_completed_jobs_leave_rows(
        self, harness: ExecutorHarness, postgres: Observer, rows: Count, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Ten jobs that are cancelled, time out, fail, lose their connection, or end well, all at once: the rows are
        those of the jobs that completed, and no backend is in a transaction."""
        caplog.set_level(logging.ERROR)
        killed = asyncio.Event()

        @task(timeout=2.0)
        async def work(session: db.AsyncSession, number: int) -> None:
            await insert(session, f"first {number}")
            match number % 5:
                case 0:
                    await session.execute(text("SELECT pg_sleep(30)"))
                case 1:
                    await asyncio.sleep(30)
                case 2:
                    await session.execute(text("SELECT 1/0"))
                case 3 if not killed.is_set():
                    await session.execute(text("SELECT pg_sleep(0.8)"))
            await insert(session, f"second {number}")

        executions = [harness.deliver(work, number) for number in range(10)]
        jobs = [harness.start(work, execution) for execution in executions]
        await asyncio.sleep(0.5)
        for number in (0, 1):
            jobs[number].cancel()
        killed.set()
        await postgres.terminate_backends()
        outcomes = await asyncio.gather(*jobs)
        completed = [outcome.kind for outcome in outcomes].count(OutcomeKind.COMPLETED)
        assert completed == 4
        assert await rows() == 2 * completed
        await eventually(postgres.idle_in_transaction, equals=0)

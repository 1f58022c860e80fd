"""Effects happen once: the executor and the ledger on a real PostgreSQL, through every way to lose a COMMIT."""

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import sqlalchemy.orm
from sqlalchemy import Delete, Insert, Update, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

import db
import worker
from db.database import Database
from tests.conftest import StartPostgres
from tests.proxy import Proxy
from tests.servers import Observer
from tests.waiting import eventually
from tests.worker.conftest import NOTES, Count, Execute, ExecutorHarness, MakeHarness, Note, create_ledger
from worker import task
from worker.broker.records import now_ms
from worker.engine.execution import Execution
from worker.engine.outcome import Outcome, OutcomeKind
from worker.errors import JobExpiredError, LedgerBusyError
from worker.ledger import FinalRow, Ledger, State, StoredResult
from worker.ledger.schema_check import GRANTS, check
from worker.message import encode
from worker.new_job import NewJob

INSERT = text("INSERT INTO note (words) VALUES (:words)")


@task
async def add(session: db.AsyncSession, words: str) -> str:
    await session.execute(INSERT, {"words": words})
    return words


@task
async def keep(session: db.AsyncSession, words: str) -> None:
    """Leaves the statement to the session."""
    session.add(Note(words=words))


@task
async def anew(session: db.AsyncSession) -> None:
    """May be done again without being refused."""
    await session.execute(text("INSERT INTO note (words) VALUES (gen_random_uuid()::text)"))


@task
async def idle() -> None:
    """Touches nothing."""


@task
async def touch(session: db.AsyncSession) -> None:
    """Has no effect but its row. After it, the connection has prepared the ledger's statement."""
    await session.execute(text("SELECT 1"))


@pytest.fixture(params=["own message", "with the COMMIT"])
async def harness(request: pytest.FixtureRequest, make_harness: MakeHarness, postgres: Observer) -> ExecutorHarness:
    """An executor, for a connection's first transaction, and for a later one, whose row goes with the COMMIT."""
    made = make_harness()
    if request.param == "with the COMMIT":
        await made.run(touch)
        await postgres.execute("DELETE FROM tandem_jobs")
    return made


async def waiters(postgres: Observer) -> int:
    """How many backends wait for a lock."""
    return int(await postgres.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


async def known(execution: Execution) -> StoredResult | None:
    return await Ledger().look_up(execution.message.job_id, execution.message.enqueued_at)


class TestSessionStateLeftByTheTask:
    """Whatever state a task leaves its session in, its row is written and the task starts once."""

    @pytest.mark.parametrize(
        "left",
        [
            "SET LOCAL lock_timeout = 1",
            "SET LOCAL search_path TO pg_catalog",
            "SET search_path TO pg_catalog",
            "SAVEPOINT left_open",
            "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SET CONSTRAINTS ALL DEFERRED",
        ],
    )
    @pytest.mark.parametrize("jobs_before", [0, 1])
    async def test_the_row_commits_with_the_effects_whatever_the_task_has_set_on_its_session(
        self, make_harness: MakeHarness, rows: Count, left: str, jobs_before: int
    ) -> None:
        """The row is written in the job's own transaction, also in one message with the COMMIT."""
        harness = make_harness()
        harness.ledger = Ledger(await check(db.default_database(), "tandem_jobs"))
        for _ in range(jobs_before):
            await harness.run(touch)
        starts: list[str] = []

        @task(max_tries=1)
        async def leaves(session: db.AsyncSession) -> None:
            starts.append(left)
            if "ISOLATION" in left:
                await session.execute(text(left))
            await session.execute(INSERT, {"words": "a"})
            await session.execute(text(left if "ISOLATION" not in left else "SELECT 1"))

        execution = harness.deliver(leaves)
        outcome = await harness.start(leaves, execution)
        assert (outcome.kind, outcome.in_ledger, len(starts)) == (OutcomeKind.COMPLETED, True, 1)
        assert await known(execution) == StoredResult(State.DONE, b"null")
        assert await rows() == 1

    @pytest.mark.parametrize("level", ["AUTOCOMMIT", "REPEATABLE READ", "SERIALIZABLE"])
    async def test_the_row_commits_with_the_effects_at_every_isolation_level(
        self, harness: ExecutorHarness, rows: Count, level: str
    ) -> None:
        """The task sets the level through SQLAlchemy's execution options."""

        @task(max_tries=1)
        async def leaves(session: db.AsyncSession) -> None:
            await session.connection(execution_options={"isolation_level": level})
            await session.execute(INSERT, {"words": "a"})

        execution = harness.deliver(leaves)
        assert (await harness.start(leaves, execution)).in_ledger
        assert await known(execution) == StoredResult(State.DONE, b"null")
        assert await rows() == 1

    async def test_a_savepoint_left_open_is_committed_with_the_row(self, harness: ExecutorHarness, rows: Count) -> None:
        """The task calls `begin_nested()` and never releases the savepoint."""

        @task(max_tries=1)
        async def leaves(session: db.AsyncSession) -> None:
            await session.begin_nested()
            await session.execute(INSERT, {"words": "a"})

        execution = harness.deliver(leaves)
        assert (await harness.start(leaves, execution)).in_ledger
        assert await known(execution) == StoredResult(State.DONE, b"null")
        assert await rows() == 1

    @pytest.mark.parametrize("kind", ["async", "sync"])
    async def test_a_job_that_closes_its_session_half_way_commits_its_row_with_the_later_effects(
        self, database_url: str, rows: Count, make_harness: MakeHarness, kind: str
    ) -> None:
        """The parameter goes on as a new session: `before_session` is called again. Nothing earlier is kept."""
        asked: list[str] = []

        async def hook(hooked: Database[Any], _arguments: dict[str, Any]) -> None:
            asked.append(hooked.name)

        @task(max_tries=1)
        async def closes(session: db.AsyncSession) -> None:
            await session.execute(INSERT, {"words": "lost"})
            await session.close()
            await session.execute(INSERT, {"words": "a"})

        @task(max_tries=1)
        def closes_in_a_thread(session: db.Session) -> None:
            session.execute(INSERT, {"words": "lost"})
            session.close()
            session.execute(INSERT, {"words": "a"})

        hooked = Database[db.AsyncSession](database_url, default=True, before_session=hook)
        harness = make_harness()
        chosen: Any = closes if kind == "async" else closes_in_a_thread
        execution = harness.deliver(chosen)
        outcome = await harness.start(chosen, execution)
        assert (outcome.kind, outcome.in_ledger) == (OutcomeKind.COMPLETED, True)
        assert await known(execution) == StoredResult(State.DONE, b"null")
        assert await rows() == 1
        assert len(asked) == 3  # twice for the job, once to look its row up
        await hooked.dispose()

    @pytest.mark.parametrize("how", ["statement", "option", "sync", "default"])
    async def test_a_job_in_a_read_only_transaction_completes_without_writing_a_row(
        self, harness: ExecutorHarness, how: str
    ) -> None:
        """A read-only transaction has no effects; the outcome is written outside of it."""
        starts: list[str] = []

        async def reads(session: Any) -> int:
            starts.append(how)
            match how:
                case "statement":
                    await session.execute(text("SET TRANSACTION READ ONLY"))
                case "option":
                    await session.connection(execution_options={"postgresql_readonly": True})
                case "default":
                    await session.execute(text("SET LOCAL transaction_read_only = on"))
            return int(await session.scalar(text("SELECT 42")))

        def reads_in_thread(session: Any) -> int:
            starts.append(how)
            session.connection(execution_options={"postgresql_readonly": True})
            return int(session.scalar(text("SELECT 42")))

        reads.__annotations__["session"] = db.AsyncSession
        reads_in_thread.__annotations__["session"] = db.Session
        report = task(max_tries=1)(reads if how != "sync" else reads_in_thread)
        execution = harness.deliver(report)
        outcome = await harness.start(report, execution)
        assert (outcome.kind, outcome.result, outcome.in_ledger) == (OutcomeKind.COMPLETED, b"42", False)
        assert len(starts) == 1
        assert await known(execution) is None

    async def test_a_job_that_turns_read_only_after_a_write_fails_and_is_rolled_back(
        self, harness: ExecutorHarness, rows: Count
    ) -> None:
        """The row can no longer be written with the effects. The error says what to do."""

        @task(max_tries=1)
        async def late(session: db.AsyncSession) -> None:
            await session.execute(INSERT, {"words": "a"})
            await session.execute(text("SET TRANSACTION READ ONLY"))

        outcome = await harness.run(late)
        assert outcome.kind is OutcomeKind.FAILED
        assert "write nothing before SET TRANSACTION READ ONLY" in str(outcome.error)
        assert await rows() == 0

    async def test_a_forbidden_write_that_the_task_swallowed_is_the_jobs_error(self, harness: ExecutorHarness) -> None:
        """The error is the one that the job swallowed, not a failure to write the row."""

        @task(max_tries=1)
        async def careless(session: db.AsyncSession) -> None:
            await session.execute(text("SET TRANSACTION READ ONLY"))
            with contextlib.suppress(DBAPIError):
                await session.execute(INSERT, {"words": "a"})

        outcome = await harness.run(careless)
        assert outcome.kind is OutcomeKind.FAILED
        assert isinstance(outcome.error, db.PoisonedTransactionError)
        assert "read-only" in str(outcome.error.__cause__)

    async def test_a_transaction_that_a_function_turned_read_only_fails_the_job(
        self, harness: ExecutorHarness, postgres: Observer
    ) -> None:
        """The change cannot be seen, so it is unknown what was written before it. The error says what to do."""
        await postgres.execute(
            "CREATE FUNCTION quietly() RETURNS text RETURN set_config('transaction_read_only', 'on', true)"
        )

        @task(max_tries=1)
        async def quiet(session: db.AsyncSession) -> None:
            await session.execute(text("SELECT quietly()"))

        outcome = await harness.run(quiet)
        assert outcome.kind is OutcomeKind.FAILED
        assert "read-only" in str(outcome.error)

    @pytest.mark.parametrize("granted", [False, True])
    async def test_a_role_without_rights_on_the_ledger_fails_the_job_and_the_error_names_the_grants(
        self, harness: ExecutorHarness, rows: Count, postgres: Observer, granted: bool
    ) -> None:
        """With the rights granted, the job completes."""
        role = f"tenant_{uuid4().hex}"
        await postgres.execute(f"CREATE ROLE {role}; GRANT ALL ON note, note_id_seq TO {role}")
        if granted:
            await postgres.execute(f"GRANT {GRANTS} ON tandem_jobs TO {role}")

        @task(max_tries=1)
        async def tenants(session: db.AsyncSession) -> None:
            await session.execute(text(f"SET LOCAL ROLE {role}"))
            await session.execute(INSERT, {"words": "a"})

        try:
            outcome = await harness.run(tenants)
        finally:
            await postgres.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        if granted:
            assert outcome.kind is OutcomeKind.COMPLETED
        else:
            assert outcome.kind is OutcomeKind.FAILED
            assert "GRANT SELECT, INSERT, UPDATE ON tandem_jobs" in str(outcome.error)
        assert await rows() == granted

    async def test_a_job_with_its_own_lock_timeout_is_put_back_while_another_attempt_writes_its_row(
        self, harness: ExecutorHarness, rows: Count
    ) -> None:
        """It is put back as a job without such a limit is, and does not run again at once."""
        starts: list[int] = []

        @task(max_tries=1)
        async def hasty(session: db.AsyncSession) -> None:
            starts.append(1)
            await session.execute(INSERT, {"words": "a"})
            await session.execute(text("SET LOCAL lock_timeout = 1"))

        execution = harness.deliver(hasty)
        message = execution.message
        done = FinalRow(message.job_id, message.enqueued_at, message.task, "arq:queue", State.DONE)
        async with db.scope():
            await Ledger().mark_done(await db.session(), done)
            outcome = await harness.start(hasty, execution)
        assert (outcome.kind, len(starts)) == (OutcomeKind.POSTPONED, 1)
        assert await rows() == 0


class TestLedgerStatement:
    async def test_a_job_that_wrote_has_a_done_row_with_its_result(self, harness: ExecutorHarness, rows: Count) -> None:
        """The ledger holds the job and its result."""
        execution = harness.deliver(add, "a")
        outcome = await harness.start(add, execution)
        assert (outcome.kind, outcome.in_ledger) == (OutcomeKind.COMPLETED, True)
        assert await known(execution) == StoredResult(State.DONE, b'"a"')
        assert await rows() == 1

    @pytest.mark.parametrize("jobs_before", [0, 1])
    @pytest.mark.parametrize("keeps", [False, True])
    async def test_the_done_row_of_a_job_that_was_enqueued_in_no_transaction_has_its_arguments_if_they_are_kept(
        self, make_harness: MakeHarness, jobs_before: int, *, keeps: bool
    ) -> None:
        """As that of a job that was enqueued in one."""
        harness = make_harness()
        harness.ledger = Ledger(keep_arguments=keeps)
        for _ in range(jobs_before):
            await harness.run(touch)
        execution = harness.deliver(add, "a")
        await harness.start(add, execution)
        row = await Ledger().latest(execution.job_id)
        assert row is not None
        assert execution.claim.payload is not None
        assert row["payload"] == (execution.claim.payload if keeps else None)

    @pytest.mark.parametrize("jobs_before", [0, 1])
    @pytest.mark.parametrize("keeps", [False, True])
    async def test_a_pending_row_that_a_job_sets_done_loses_its_arguments_unless_they_are_kept(
        self, make_harness: MakeHarness, jobs_before: int, *, keeps: bool
    ) -> None:
        """By the statement that goes with the COMMIT, too."""
        harness = make_harness()
        harness.ledger = Ledger(keep_arguments=keeps)
        for _ in range(jobs_before):
            await harness.run(touch)
        execution = harness.deliver(add, "a")
        message = execution.message
        async with db.scope():
            pending = NewJob(message.job_id, b"{}", message.task, "arq:queue", message.enqueued_at)
            await Ledger().add(await db.session(), [pending])
        await harness.start(add, execution)
        row = await Ledger().latest(execution.job_id)
        assert row is not None
        assert (row["state"], row["payload"]) == ("done", b"{}" if keeps else None)

    @pytest.mark.parametrize("adds", [add, keep])
    async def test_the_ledger_adds_no_message_to_a_jobs_transaction(
        self, adds: worker.Task[..., Any], database_url: str, postgres: Observer
    ) -> None:
        """A job's transaction is BEGIN, its own statements, and the ledger's one in one message with the COMMIT."""
        await postgres.execute(NOTES)
        await create_ledger(database_url)
        async with Proxy(database_url) as proxy:
            database = Database(proxy.url, default=True, pre_ping=False)
            harness = ExecutorHarness()
            try:
                await harness.run(adds, "warm")
                proxy.statements.clear()
                await harness.run(adds, "a")
                first_words = [re.split(r"\W", statement)[0] for statement in proxy.statements]
                assert first_words == ["BEGIN", "INSERT", "SET"]
                assert proxy.statements[2].endswith(";COMMIT")
            finally:
                harness.caller.close()
                await database.dispose()

    @pytest.mark.usefixtures("broker")
    async def test_a_job_that_enqueues_another_sends_both_rows_in_one_message_with_the_commit(
        self, database_url: str, postgres: Observer
    ) -> None:
        """Once the connection has prepared both statements."""

        @task
        async def enqueue_another(session: db.AsyncSession, words: str) -> None:
            await session.execute(INSERT, {"words": words})
            await add.enqueue(words)

        await postgres.execute(NOTES)
        await create_ledger(database_url)
        async with Proxy(database_url) as proxy:
            database = Database(proxy.url, default=True, pre_ping=False)
            harness = ExecutorHarness()
            try:
                for words in ("a", "b"):
                    proxy.statements.clear()
                    assert (await harness.run(enqueue_another, words)).kind is OutcomeKind.COMPLETED
                assert [re.split(r"\W", statement)[0] for statement in proxy.statements] == ["BEGIN", "INSERT", "SET"]
                assert proxy.statements[2].count("EXECUTE") == 2
                found = await postgres.fetch("SELECT state, count(*) FROM tandem_jobs GROUP BY state ORDER BY state")
                assert [tuple(row) for row in found] == [("done", 2), ("pending", 2)]
            finally:
                harness.caller.close()
                await database.dispose()

    async def test_unflushed_writes_of_a_session_wait_for_their_locks_beyond_the_ledgers_limit(
        self, harness: ExecutorHarness, rows: Count, postgres: Observer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The limit on the wait for the ledger's row does not apply to the job's own statements."""
        monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 0.1)
        async with db.scope():
            await (await db.session()).execute(INSERT, {"words": "a"})
            waiting = asyncio.create_task(harness.run(keep, "a"))
            await eventually(lambda: waiters(postgres), equals=1)
            await asyncio.wait({waiting}, timeout=0.5)
            assert not waiting.done()
            await db.rollback()
        assert (await waiting).kind is OutcomeKind.COMPLETED
        assert await rows() == 1

    async def test_a_job_that_touches_no_database_sends_no_statement(
        self, make_harness: MakeHarness, postgres: Observer
    ) -> None:
        """No session, no connection, no row."""
        outcome = await make_harness().run(idle)
        assert (outcome.kind, outcome.in_ledger) == (OutcomeKind.COMPLETED, False)
        assert await postgres.backends() == 0
        assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs") == 0

    async def test_a_task_with_once_false_writes_no_row(
        self, execute: Execute, postgres: Observer, rows: Count
    ) -> None:
        """`@task(once=False)` writes no row."""

        @task(once=False)
        async def twice(session: db.AsyncSession) -> None:
            await session.execute(INSERT, {"words": "a"})

        assert not (await execute(twice)).in_ledger
        assert await rows() == 1
        assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs") == 0

    async def test_a_job_that_only_committed_early_has_a_done_row(self, harness: ExecutorHarness) -> None:
        """A job that committed has touched the database, even if no transaction is open at its end."""

        @task
        async def early(session: db.AsyncSession) -> None:
            await session.execute(INSERT, {"words": "a"})
            await session.commit()

        execution = harness.deliver(early)
        assert (await harness.start(early, execution)).in_ledger
        assert await known(execution) == StoredResult(State.DONE, b"null")

    async def test_jobs_that_a_job_enqueues_commit_in_its_transaction(
        self, harness: ExecutorHarness, broker: worker.Broker, postgres: Observer
    ) -> None:
        """What a task enqueues is written in the same transaction, before the ledger's own statement."""

        @task
        async def fan_out() -> None:
            await idle.enqueue_many([{}] * 3)

        execution = harness.deliver(fan_out)
        outcome = await harness.start(fan_out, execution)
        assert outcome.in_ledger
        counts = await postgres.fetch("SELECT state, count(*) FROM tandem_jobs GROUP BY state ORDER BY state")
        assert [tuple(row) for row in counts] == [("done", 1), ("pending", 3)]
        assert await broker.depth("arq:queue") == 3

    async def test_a_second_delivery_of_a_sync_task_is_rolled_back(self, harness: ExecutorHarness, rows: Count) -> None:
        """The work of a `Session` is committed with the row of the default database."""

        @task
        def plain(session: db.Session) -> int:
            session.execute(text("INSERT INTO note (words) VALUES (gen_random_uuid()::text)"))
            return 1

        execution = harness.deliver(plain)
        assert (await harness.start(plain, execution)).in_ledger
        again = await harness.start(plain, execution)
        assert (again.kind, again.result) == (OutcomeKind.DUPLICATE, b"1")
        assert await rows() == 1

    async def test_a_sync_task_writes_its_row_in_its_own_transaction(
        self, database_url: str, postgres: Observer
    ) -> None:
        """The ledger's statement goes through the `Session`'s connection, the only one that the job takes."""

        @task
        def plain(session: db.Session) -> None:
            session.execute(text("INSERT INTO note (words) VALUES (gen_random_uuid()::text)"))

        await postgres.execute(NOTES)
        await create_ledger(database_url)
        async with Proxy(database_url) as proxy:
            database = Database(proxy.url, default=True, pre_ping=False)
            harness = ExecutorHarness()
            try:
                await harness.run(plain)  # warm
                proxy.statements.clear()
                assert (await harness.run(plain)).in_ledger
                first_words = [statement.split()[0] for statement in proxy.statements]
                assert first_words == ["BEGIN", "INSERT", "INSERT", "COMMIT"]
                assert proxy.connections == 1
            finally:
                harness.caller.close()
                await database.dispose()


class TestSecondDelivery:
    async def test_a_job_delivered_twice_has_one_effect_and_one_result(
        self, harness: ExecutorHarness, rows: Count
    ) -> None:
        """The second delivery is rolled back and returns the first one's stored result (D5)."""
        ran: list[int] = []

        @task
        async def count(session: db.AsyncSession) -> int:
            ran.append(1)
            await session.execute(INSERT, {"words": str(len(ran))})
            return len(ran)

        execution = harness.deliver(count)
        first, second = await harness.start(count, execution), await harness.start(count, execution)
        assert (first.kind, second.kind, second.result) == (OutcomeKind.COMPLETED, OutcomeKind.DUPLICATE, b"1")
        assert (len(ran), await rows()) == (2, 1)

    async def test_a_done_job_whose_worker_crashed_is_not_called_again(self, harness: ExecutorHarness) -> None:
        """After a crash the ledger is read before the body is called: the body may do more than write rows."""
        began: list[str] = []

        @task
        async def send(session: db.AsyncSession, words: str) -> None:
            began.append(words)
            await session.execute(INSERT, {"words": words})

        execution = harness.deliver(send, "a")
        await harness.start(send, execution)
        execution.claim = execution.claim._replace(crashes=1)
        assert (await harness.start(send, execution)).kind is OutcomeKind.DUPLICATE
        assert began == ["a"]

    async def test_the_job_context_counts_failed_tries_and_crashed_starts(self, harness: ExecutorHarness) -> None:
        """`JobContext.attempt` counts tries that failed, `previous` workers that died as well."""
        seen: list[tuple[int, int]] = []

        @task
        async def look(job: worker.JobContext) -> None:
            seen.append((job.attempt, job.previous))

        execution = harness.deliver(look, tries=1)
        execution.claim = execution.claim._replace(crashes=2)
        await harness.start(look, execution)
        assert seen == [(2, 3)]

    @pytest.mark.parametrize("kind", [db.AsyncSession, db.Session])
    async def test_a_job_whose_row_is_locked_by_another_attempt_is_put_back_after_a_short_wait(
        self, kind: type, harness: ExecutorHarness, rows: Count, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In either kind of session the job is put back long before the server would cancel its statement (D7)."""
        monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 0.2)

        @task
        def plainly(session: db.Session) -> None:
            session.execute(INSERT, {"words": "a"})

        chosen = harness.deliver(plainly) if kind is db.Session else harness.deliver(add, "a")
        message = chosen.message
        ending = FinalRow(message.job_id, message.enqueued_at, message.task, "arq:queue", State.DONE, result=b"1")
        async with db.scope():
            assert await Ledger().mark_done(await db.session(), ending) is None
            outcome = await harness.start(plainly if kind is db.Session else add, chosen)
        assert (outcome.kind, type(outcome.error)) == (OutcomeKind.POSTPONED, LedgerBusyError)
        assert await rows() == 0

    @pytest.mark.parametrize("kind", [db.AsyncSession, db.Session])
    async def test_a_large_result_on_a_slow_network_is_not_taken_for_a_lock(
        self, kind: type, database_url: str, postgres: Observer, rows: Count, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The job starts once and writes one row, however long its own result takes to send."""
        monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 0.2)
        starts: list[int] = []
        large = "x" * 1_000_000

        @task
        async def fetch(session: db.AsyncSession) -> str:
            starts.append(1)
            await session.execute(INSERT, {"words": "a"})
            return large

        @task
        def fetch_plainly(session: db.Session) -> str:
            starts.append(1)
            session.execute(INSERT, {"words": "a"})
            return large

        await postgres.execute(NOTES)
        async with Proxy(database_url) as proxy:
            database = Database(proxy.url, default=True, pre_ping=False)
            harness = ExecutorHarness()
            try:
                proxy.rate = 1_000_000  # bytes a second: five times what may pass for a lock
                outcome = await harness.run(fetch_plainly if kind is db.Session else fetch)
            finally:
                harness.caller.close()
                await database.dispose()
        assert (outcome.kind, outcome.in_ledger, starts) == (OutcomeKind.COMPLETED, True, [1])
        assert await rows() == 1

    async def test_after_five_free_reruns_a_locked_ledger_costs_a_try_each_time(
        self, harness: ExecutorHarness, rows: Count, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each free rerun is later than the one before it. The last try fails the job."""
        monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 0.1)
        execution = harness.deliver(add, "a")
        async with db.scope():
            await (await db.session()).execute(text("LOCK TABLE tandem_jobs IN SHARE MODE"))
            outcomes = [await harness.start(add, execution) for _ in range(6)]
            execution.claim = execution.claim._replace(tries=2)
            outcomes.append(await harness.start(add, execution))
        kinds = [outcome.kind for outcome in outcomes]
        assert kinds == [OutcomeKind.POSTPONED] * 5 + [OutcomeKind.RETRIED, OutcomeKind.FAILED]
        assert [outcome.delay for outcome in outcomes[:5]] == [1, 2, 4, 8, 16]
        assert {type(outcome.error) for outcome in outcomes} == {LedgerBusyError}
        assert await rows() == 0

    async def test_a_task_in_a_translated_schema_writes_its_rows_to_the_ledgers_own_schema(
        self, harness: ExecutorHarness, rows: Count, postgres: Observer
    ) -> None:
        """A task may work in a tenant's schema; a second delivery still finds its row."""
        await postgres.execute("CREATE SCHEMA tenant; CREATE TABLE tenant.tandem_jobs (LIKE tandem_jobs INCLUDING ALL)")

        @task
        async def work_for_tenant(session: db.AsyncSession) -> None:
            await session.connection(execution_options={"schema_translate_map": {None: "tenant"}})
            await session.execute(text("INSERT INTO note (words) VALUES (gen_random_uuid()::text)"))
            await Ledger().add(session, [NewJob(uuid4().hex, b"{}", "send", "arq:queue", 1)])

        execution = harness.deliver(work_for_tenant)
        outcomes = [await harness.start(work_for_tenant, execution) for _ in range(2)]
        assert [outcome.kind for outcome in outcomes] == [OutcomeKind.COMPLETED, OutcomeKind.DUPLICATE]
        assert await rows() == 1
        assert await postgres.fetchval("SELECT count(*) FROM public.tandem_jobs") == 2
        assert await postgres.fetchval("SELECT count(*) FROM tenant.tandem_jobs") == 0

    async def test_an_engine_that_translates_every_schema_does_so_for_the_ledger_too(
        self, database_url: str, harness: ExecutorHarness, rows: Count, postgres: Observer
    ) -> None:
        """The row is in the translated schema, and a second delivery finds it there."""
        await postgres.execute("CREATE SCHEMA app; CREATE TABLE app.tandem_jobs (LIKE tandem_jobs INCLUDING ALL)")
        translated = Database(
            database_url,
            default=True,
            engine_options={"execution_options": {"schema_translate_map": {None: "app"}}},
        )
        try:
            execution = harness.deliver(anew)
            outcomes = [await harness.start(anew, execution) for _ in range(2)]
            assert [outcome.kind for outcome in outcomes] == [OutcomeKind.COMPLETED, OutcomeKind.DUPLICATE]
            assert await rows() == 1
            assert await postgres.fetchval("SELECT count(*) FROM app.tandem_jobs") == 1
        finally:
            await translated.dispose()

    async def test_a_before_execute_listener_sees_the_ledgers_statement(
        self, harness: ExecutorHarness, database: Database[Any]
    ) -> None:
        """A listener of the engine receives the ledger's statement as any other, and may change it."""
        heard: list[str] = []

        def listen(_connection: Any, statement: Any, *_: Any) -> None:
            heard.append(type(statement).__name__)

        async with db.independent(database) as session:
            engine = session.get_bind().engine
        event.listen(engine, "before_execute", listen)
        try:
            assert (await harness.run(anew)).kind is OutcomeKind.COMPLETED
        finally:
            event.remove(engine, "before_execute", listen)
        assert heard == ["TextClause", "Insert"]

    async def test_a_session_that_routes_reads_to_a_replica_writes_the_row_to_the_primary(
        self, database_url: str, harness: ExecutorHarness, rows: Count
    ) -> None:
        """A session class that sends reads elsewhere sends the ledger's statement where writes go."""
        read_only = {"server_settings": {"default_transaction_read_only": "on"}}
        replica = create_async_engine(database_url, connect_args=read_only)

        class Routed(sqlalchemy.orm.Session):
            def get_bind(self, *args: Any, clause: Any = None, **kwargs: Any) -> Any:
                if self._flushing or isinstance(clause, Insert | Update | Delete):
                    return super().get_bind(*args, clause=clause, **kwargs)
                return replica.sync_engine

        @task
        async def keep_another(session: db.AsyncSession) -> None:
            session.add(Note(words=uuid4().hex))

        routed = Database(
            database_url,
            default=True,
            sessions=lambda engine: async_sessionmaker(engine, sync_session_class=Routed, expire_on_commit=False),
        )
        try:
            execution = harness.deliver(keep_another)
            outcomes = [await harness.start(keep_another, execution) for _ in range(2)]
            assert [outcome.kind for outcome in outcomes] == [OutcomeKind.COMPLETED, OutcomeKind.DUPLICATE]
            assert await rows() == 1
        finally:
            await routed.dispose()
            await replica.dispose()

    async def test_of_two_concurrent_attempts_one_commits_and_the_other_is_rolled_back(
        self, harness: ExecutorHarness, rows: Count
    ) -> None:
        """The second attempt waits for the first one and returns its result."""
        both = asyncio.Barrier(2)

        @task
        async def meet(session: db.AsyncSession) -> int:
            await session.execute(text("INSERT INTO note (words) VALUES (gen_random_uuid()::text)"))
            await both.wait()
            return 7

        execution = harness.deliver(meet)
        outcomes = await asyncio.gather(harness.start(meet, execution), harness.start(meet, execution))
        assert {outcome.kind for outcome in outcomes} == {OutcomeKind.COMPLETED, OutcomeKind.DUPLICATE}
        assert [outcome.result for outcome in outcomes] == [b"7", b"7"]
        assert await rows() == 1

    async def test_of_two_concurrent_attempts_at_repeatable_read_one_commits_and_none_runs_again(
        self, harness: ExecutorHarness, rows: Count
    ) -> None:
        """The ledger's statement fails with 40001; the ledger is read before the job would run again."""
        both = asyncio.Barrier(2)
        began: list[int] = []

        @task
        async def meet(session: db.AsyncSession) -> int:
            began.append(1)
            await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            await session.execute(text("INSERT INTO note (words) VALUES (gen_random_uuid()::text)"))
            await both.wait()
            return 7

        execution = harness.deliver(meet)
        outcomes = await asyncio.gather(harness.start(meet, execution), harness.start(meet, execution))
        assert {outcome.kind for outcome in outcomes} == {OutcomeKind.COMPLETED, OutcomeKind.DUPLICATE}
        assert len(began) == 2
        assert await rows() == 1

    async def test_a_job_whose_row_a_stuck_transaction_holds_frees_its_slot_within_three_seconds(
        self, harness: ExecutorHarness, rows: Count, sync_database_url: str
    ) -> None:
        """The job is put back at no cost, and completes once the transaction has ended (D7)."""
        execution = harness.deliver(add, "a")
        message = execution.message
        stuck = await asyncpg.connect(sync_database_url.replace("+psycopg", ""))
        try:
            async with asyncio.timeout(3):
                transaction = stuck.transaction()
                await transaction.start()
                await stuck.execute(
                    "INSERT INTO tandem_jobs (id, enqueued_at, task, queue, state) VALUES ($1, $2, 'add', 'q', 'done')",
                    message.job_id,
                    message.enqueued_at,
                )
                outcome = await harness.start(add, execution)
                await transaction.rollback()
        finally:
            await stuck.close()
        assert (outcome.kind, outcome.delay) == (OutcomeKind.POSTPONED, 1.0)
        assert await rows() == 0
        assert (await harness.start(add, execution)).kind is OutcomeKind.COMPLETED

    @pytest.mark.parametrize(
        ("state", "kind", "error"),
        [
            (State.ABORTED, OutcomeKind.ABORTED, asyncio.CancelledError),
            (State.DISCARDED, OutcomeKind.ABORTED, asyncio.CancelledError),
            (State.EXPIRED, OutcomeKind.EXPIRED, JobExpiredError),
        ],
    )
    async def test_a_job_already_aborted_discarded_or_expired_in_the_ledger_is_rolled_back(
        self, harness: ExecutorHarness, rows: Count, state: State, kind: OutcomeKind, error: type[BaseException]
    ) -> None:
        """The outcome is the state that the row has."""
        execution = harness.deliver(add, "a")
        message = execution.message
        await Ledger().complete([FinalRow(message.job_id, message.enqueued_at, "add", "arq:queue", state)])
        outcome = await harness.start(add, execution)
        assert outcome.kind is kind
        assert isinstance(outcome.error, error)
        assert await rows() == 0

    async def test_a_job_enqueued_in_a_transaction_sets_its_own_pending_row_done(
        self, harness: ExecutorHarness, rows: Count
    ) -> None:
        """The row is set done in the job's transaction, with its result."""
        execution = harness.deliver(add, "a")
        message = execution.message
        row = NewJob(message.job_id, encode("add", b"{}", now_ms()), "add", "arq:queue", message.enqueued_at)
        async with db.scope():
            await Ledger().add(await db.session(), [row])
        assert (await harness.start(add, execution)).kind is OutcomeKind.COMPLETED
        assert await known(execution) == StoredResult(State.DONE, b'"a"')
        assert await rows() == 1


class TestLostCommit:
    """A2: the connection is lost during the COMMIT, and its answer is unknown."""

    @pytest.fixture
    async def proxy(self, database_url: str, postgres: Observer) -> AsyncIterator[Proxy]:
        await postgres.execute(NOTES)
        await create_ledger(database_url)
        async with Proxy(database_url) as proxy:
            database = Database(proxy.url, default=True, pre_ping=False)
            yield proxy
            await database.dispose()

    @pytest.fixture(params=["own message", "with the COMMIT"])
    async def through(self, request: pytest.FixtureRequest, proxy: Proxy) -> AsyncIterator[ExecutorHarness]:
        """An executor behind the proxy."""
        assert proxy.url  # the default database leads through it
        harness = ExecutorHarness()
        if request.param == "with the COMMIT":
            await harness.run(touch)
        yield harness
        harness.caller.close()

    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_a_connection_lost_in_the_commit_leaves_one_effect(
        self, proxy: Proxy, through: ExecutorHarness, rows: Count, when: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whether the server saw the COMMIT or not: one row, and the job has completed."""
        runs: list[str] = []

        @task
        async def note(session: db.AsyncSession) -> str:
            runs.append("run")
            await session.execute(text("INSERT INTO note (words) VALUES (gen_random_uuid()::text)"))
            return "done"

        trap = proxy.drop_on("(^|;)COMMIT", when=when)
        outcome = await through.run(note)
        assert trap.sprung
        assert (outcome.kind, outcome.result, outcome.in_ledger) == (OutcomeKind.COMPLETED, b'"done"', True)
        assert await rows() == 1
        assert len(runs) == (2 if when == "before" else 1)
        assert "the connection was lost in the COMMIT; asking the ledger whether it happened" in caplog.text

    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_a_connection_lost_in_the_commit_of_a_sync_task_leaves_one_effect(
        self, proxy: Proxy, through: ExecutorHarness, rows: Count, when: Any
    ) -> None:
        """The same for the COMMIT of a `Session`."""
        runs: list[str] = []

        @task
        def note(session: db.Session) -> str:
            runs.append("run")
            session.execute(text("INSERT INTO note (words) VALUES (gen_random_uuid()::text)"))
            return "done"

        trap = proxy.drop_on("(^|;)COMMIT", when=when)
        outcome = await through.run(note)
        assert trap.sprung
        assert (outcome.kind, outcome.result, outcome.in_ledger) == (OutcomeKind.COMPLETED, b'"done"', True)
        assert await rows() == 1
        assert len(runs) == (2 if when == "before" else 1)

    async def test_a_job_with_an_unknown_commit_is_held_until_the_database_answers(
        self, proxy: Proxy, through: ExecutorHarness, rows: Count, caplog: pytest.LogCaptureFixture
    ) -> None:
        """While the database takes no connections the job is neither completed nor run again."""
        await through.run(anew)
        proxy.refuse()  # new connections: the one that is open goes on
        proxy.drop_on("(^|;)COMMIT", when="after")
        execution = through.deliver(anew)
        job = through.start(anew, execution)
        await eventually(lambda: "asking the ledger" in caplog.text)
        begun = execution.attempt_began
        done, _ = await asyncio.wait({job}, timeout=1)
        assert not done
        assert execution.attempt_began > begun  # the lease is kept meanwhile
        await proxy.resume()
        assert (await job).kind is OutcomeKind.COMPLETED
        assert await rows() == 2

    async def test_a_job_started_before_keeps_its_lease_while_the_ledger_is_unreachable(
        self, proxy: Proxy, through: ExecutorHarness, rows: Count
    ) -> None:
        """The ledger must be read before the job may run again. It runs once the database is back."""
        execution = through.deliver(anew)
        execution.claim = execution.claim._replace(crashes=1)
        await db.default_database().dispose()
        proxy.refuse()
        job = through.start(anew, execution)
        for _ in range(3):
            begun = execution.attempt_began
            await eventually(lambda: execution.attempt_began > begun)  # noqa: B023 - asked at once
        assert not job.done()
        await proxy.resume()
        assert (await job).kind is OutcomeKind.COMPLETED
        assert await rows() == 1

    @pytest.mark.parametrize(
        ("asked", "kind"),
        [(OutcomeKind.INTERRUPTED, OutcomeKind.INTERRUPTED), (OutcomeKind.ABORTED, OutcomeKind.COMPLETED)],
    )
    async def test_a_shutdown_during_an_unknown_commit_puts_the_job_back_and_an_abort_comes_too_late(
        self,
        proxy: Proxy,
        through: ExecutorHarness,
        rows: Count,
        asked: OutcomeKind,
        kind: OutcomeKind,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        """After a shutdown the next worker reads the outcome from the ledger."""
        await through.run(add, "warm")
        proxy.refuse()  # new connections: the one that is open goes on
        proxy.drop_on("(^|;)COMMIT", when="after")
        execution = through.deliver(anew)
        job: asyncio.Task[Outcome] = through.start(anew, execution)
        await eventually(lambda: "asking the ledger" in caplog.text)
        execution.cancelled_as = asked
        job.cancel()
        done, _ = await asyncio.wait({job}, timeout=0.2)
        assert bool(done) is (kind is OutcomeKind.INTERRUPTED)
        await proxy.resume()
        assert (await job).kind is kind
        execution.cancelled_as = None
        assert (await through.start(anew, execution)).kind is OutcomeKind.DUPLICATE
        assert await rows() == 2

    async def test_a_stray_cancellation_does_not_end_the_wait_for_an_unknown_commit(
        self, proxy: Proxy, through: ExecutorHarness, rows: Count, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The job may be committed. Only the engine's own cancellation leaves it to the next worker."""
        await through.run(add, "warm")
        proxy.refuse()
        proxy.drop_on("(^|;)COMMIT", when="after")
        job: asyncio.Task[Outcome] = through.start(anew, through.deliver(anew))
        await eventually(lambda: "asking the ledger" in caplog.text)
        job.cancel()
        done, _ = await asyncio.wait({job}, timeout=0.2)
        assert not done
        await proxy.resume()
        assert (await job).kind is OutcomeKind.COMPLETED
        assert await rows() == 2

    async def test_a_commit_still_running_in_the_server_is_waited_for_before_the_ledger_is_read(
        self, own_postgres: StartPostgres
    ) -> None:
        """A COMMIT that is still under way is not taken for a rolled back one."""
        server = own_postgres()
        async with Proxy(server.url) as proxy:
            database = Database(proxy.url, default=True, pre_ping=False)
            harness = ExecutorHarness()
            connection = await asyncpg.connect(server.url.replace("+asyncpg", ""))
            try:
                await connection.execute(NOTES)
                await create_ledger(server.url)
                # The COMMIT takes a second in the server, which goes on when its client has gone.
                await connection.execute(
                    "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
                    " 'BEGIN PERFORM pg_sleep(1); RETURN NULL; END';"
                    "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON note DEFERRABLE INITIALLY DEFERRED"
                    " FOR EACH ROW EXECUTE FUNCTION slow();"
                )
                job = harness.start(add, harness.deliver(add, "a"))
                await eventually(lambda: proxy.count("^COMMIT") == 1)
                await asyncio.sleep(0.2)  # the server has it by now
                await proxy.drop()
                outcome = await job
                assert (outcome.kind, outcome.in_ledger) == (OutcomeKind.COMPLETED, True)
                assert await connection.fetchval("SELECT count(*) FROM note") == 1
            finally:
                await connection.close()
                harness.caller.close()
                await database.dispose()

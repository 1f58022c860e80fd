"""Effects happen once: the executor and the ledger on a real PostgreSQL, through every way to lose a COMMIT."""

import asyncio
import contextlib
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
from tests.worker.conftest import NOTES, Bench, Count, Execute, Note, create_ledger
from worker import task
from worker.engine.execution import Execution
from worker.engine.outcome import Kind, Outcome
from worker.errors import JobExpiredError, LedgerBusyError
from worker.exchange import now_ms
from worker.ledger import Ending, Known, Ledger, State
from worker.ledger.presence import GRANTS, check
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


async def waiters(postgres: Observer) -> int:
    """How many backends wait for a lock."""
    return int(await postgres.fetchval("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))


async def known(execution: Execution) -> Known | None:
    return await Ledger().look_up(execution.message.job_id, execution.message.enqueued_at)


class TestWhatTheBodyLeavesSet:
    """The ledger's word does not depend on the state in which a task leaves its session: each starts once."""

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
    async def test_the_row_is_written_with_the_effects(self, bench: Bench, rows: Count, left: str) -> None:
        """Whatever they are: the row is in the job's own transaction."""
        bench.ledger = Ledger(await check(db.default_database(), "tandem_jobs"))
        starts: list[str] = []

        @task(max_tries=1)
        async def leaves(session: db.AsyncSession) -> None:
            starts.append(left)
            if "ISOLATION" in left:
                await session.execute(text(left))
            await session.execute(INSERT, {"words": "a"})
            await session.execute(text(left if "ISOLATION" not in left else "SELECT 1"))

        execution = bench.deliver(leaves)
        outcome = await bench.start(leaves, execution)
        assert (outcome.kind, outcome.in_ledger, len(starts)) == (Kind.COMPLETED, True, 1)
        assert await known(execution) == Known(State.DONE, b"null")
        assert await rows() == 1

    @pytest.mark.parametrize("level", ["AUTOCOMMIT", "REPEATABLE READ", "SERIALIZABLE"])
    async def test_isolation_levels(self, bench: Bench, rows: Count, level: str) -> None:
        """As SQLAlchemy sets them."""

        @task(max_tries=1)
        async def leaves(session: db.AsyncSession) -> None:
            await session.connection(execution_options={"isolation_level": level})
            await session.execute(INSERT, {"words": "a"})

        execution = bench.deliver(leaves)
        assert (await bench.start(leaves, execution)).in_ledger
        assert await known(execution) == Known(State.DONE, b"null")
        assert await rows() == 1

    async def test_savepoint_of_the_sessions(self, bench: Bench, rows: Count) -> None:
        """`begin_nested()` that nobody has released."""

        @task(max_tries=1)
        async def leaves(session: db.AsyncSession) -> None:
            await session.begin_nested()
            await session.execute(INSERT, {"words": "a"})

        execution = bench.deliver(leaves)
        assert (await bench.start(leaves, execution)).in_ledger
        assert await known(execution) == Known(State.DONE, b"null")
        assert await rows() == 1

    @pytest.mark.parametrize("how", ["statement", "option", "sync", "default"])
    async def test_read_only_transaction(self, bench: Bench, how: str) -> None:
        """It has no effects, and writes no row: what becomes of the job is settled outside."""
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
        execution = bench.deliver(report)
        outcome = await bench.start(report, execution)
        assert (outcome.kind, outcome.result, outcome.in_ledger) == (Kind.COMPLETED, b"42", False)
        assert len(starts) == 1
        assert await known(execution) is None

    async def test_read_only_after_it_has_written(self, bench: Bench, rows: Count) -> None:
        """Its effects cannot be one with a row any more: it fails, rolled back, and is told what to do."""

        @task(max_tries=1)
        async def late(session: db.AsyncSession) -> None:
            await session.execute(INSERT, {"words": "a"})
            await session.execute(text("SET TRANSACTION READ ONLY"))

        outcome = await bench.run(late)
        assert outcome.kind is Kind.FAILED
        assert "write nothing before SET TRANSACTION READ ONLY" in str(outcome.error)
        assert await rows() == 0

    async def test_forbidden_write_that_was_swallowed(self, bench: Bench) -> None:
        """The error is what the job has swallowed, and not that the ledger could not be asked after it."""

        @task(max_tries=1)
        async def careless(session: db.AsyncSession) -> None:
            await session.execute(text("SET TRANSACTION READ ONLY"))
            with contextlib.suppress(DBAPIError):
                await session.execute(INSERT, {"words": "a"})

        outcome = await bench.run(careless)
        assert outcome.kind is Kind.FAILED
        assert isinstance(outcome.error, db.PoisonedTransactionError)
        assert "read-only" in str(outcome.error.__cause__)

    async def test_read_only_by_a_function(self, bench: Bench, postgres: Observer) -> None:
        """Nobody could see that, so nobody knows what was written before: it fails, and is told what to do."""
        await postgres.execute(
            "CREATE FUNCTION quietly() RETURNS text RETURN set_config('transaction_read_only', 'on', true)"
        )

        @task(max_tries=1)
        async def quiet(session: db.AsyncSession) -> None:
            await session.execute(text("SELECT quietly()"))

        outcome = await bench.run(quiet)
        assert outcome.kind is Kind.FAILED
        assert "read-only" in str(outcome.error)

    @pytest.mark.parametrize("granted", [False, True])
    async def test_role_of_a_tenant(self, bench: Bench, rows: Count, postgres: Observer, granted: bool) -> None:
        """A role needs rights on the ledger: without them the error names them, with them the job is done."""
        role = f"tenant_{uuid4().hex}"
        await postgres.execute(f"CREATE ROLE {role}; GRANT ALL ON note, note_id_seq TO {role}")
        if granted:
            await postgres.execute(f"GRANT {GRANTS} ON tandem_jobs TO {role}")

        @task(max_tries=1)
        async def tenants(session: db.AsyncSession) -> None:
            await session.execute(text(f"SET LOCAL ROLE {role}"))
            await session.execute(INSERT, {"words": "a"})

        try:
            outcome = await bench.run(tenants)
        finally:
            await postgres.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        if granted:
            assert outcome.kind is Kind.COMPLETED
        else:
            assert outcome.kind is Kind.FAILED
            assert "GRANT SELECT, INSERT, UPDATE ON tandem_jobs" in str(outcome.error)
        assert await rows() == granted

    async def test_lock_timeout_while_another_attempt_settles(self, bench: Bench, rows: Count) -> None:
        """It is put back, as it is without a limit of its own, and not run again at once."""
        starts: list[int] = []

        @task(max_tries=1)
        async def hasty(session: db.AsyncSession) -> None:
            starts.append(1)
            await session.execute(INSERT, {"words": "a"})
            await session.execute(text("SET LOCAL lock_timeout = 1"))

        execution = bench.deliver(hasty)
        message = execution.message
        done = Ending(message.job_id, message.enqueued_at, message.task, "arq:queue", State.DONE)
        async with db.scope():
            await Ledger().mark_done(await db.session(), done)
            outcome = await bench.start(hasty, execution)
        assert (outcome.kind, len(starts)) == (Kind.POSTPONED, 1)
        assert await rows() == 0


class TestOneStatement:
    async def test_a_job_that_wrote_has_a_done_row_with_its_result(self, bench: Bench, rows: Count) -> None:
        """The ledger knows the job and what it returned."""
        execution = bench.deliver(add, "a")
        outcome = await bench.start(add, execution)
        assert (outcome.kind, outcome.in_ledger) == (Kind.COMPLETED, True)
        assert await known(execution) == Known(State.DONE, b'"a"')
        assert await rows() == 1

    @pytest.mark.parametrize("adds", [add, keep])
    async def test_it_is_the_only_one_besides_the_jobs_own(
        self, adds: worker.Task[..., Any], database_url: str, postgres: Observer
    ) -> None:
        """A job's transaction is BEGIN, its own statements, the ledger's one, COMMIT: nothing else is sent."""
        await postgres.execute(NOTES)
        await create_ledger(database_url)
        async with Proxy(database_url) as proxy:
            database = Database(proxy.url, default=True, pre_ping=False)
            bench = Bench()
            try:
                await bench.run(adds, "warm")
                proxy.statements.clear()
                await bench.run(adds, "a")
                first_words = [statement.split()[0].rstrip(";") for statement in proxy.statements]
                assert first_words == ["BEGIN", "INSERT", "INSERT", "COMMIT"]
                assert "tandem_jobs" in proxy.statements[2]
            finally:
                bench.caller.close()
                await database.dispose()

    async def test_what_is_pending_waits_for_its_own_locks(
        self, bench: Bench, rows: Count, postgres: Observer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The limit on the wait for the ledger's row does not hold for the job's own statement."""
        monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 0.1)
        async with db.scope():
            await (await db.session()).execute(INSERT, {"words": "a"})
            waiting = asyncio.create_task(bench.run(keep, "a"))
            await eventually(lambda: waiters(postgres), equals=1)
            await asyncio.wait({waiting}, timeout=0.5)
            assert not waiting.done()
            await db.rollback()
        assert (await waiting).kind is Kind.COMPLETED
        assert await rows() == 1

    async def test_a_job_that_touches_nothing_sends_nothing(self, bench: Bench, postgres: Observer) -> None:
        """No session, no connection, no row."""
        outcome = await bench.run(idle)
        assert (outcome.kind, outcome.in_ledger) == (Kind.COMPLETED, False)
        assert await postgres.backends() == 0
        assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs") == 0

    async def test_opting_out(self, execute: Execute, postgres: Observer, rows: Count) -> None:
        """`@task(once=False)` writes no row."""

        @task(once=False)
        async def twice(session: db.AsyncSession) -> None:
            await session.execute(INSERT, {"words": "a"})

        assert not (await execute(twice)).in_ledger
        assert await rows() == 1
        assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs") == 0

    async def test_what_was_committed_early_counts(self, bench: Bench) -> None:
        """A job has touched the database if it committed, also if nothing is open at its end."""

        @task
        async def early(session: db.AsyncSession) -> None:
            await session.execute(INSERT, {"words": "a"})
            await session.commit()

        execution = bench.deliver(early)
        assert (await bench.start(early, execution)).in_ledger
        assert await known(execution) == Known(State.DONE, b"null")

    async def test_jobs_of_the_job_go_with_it(self, bench: Bench, queue: worker.Queue, postgres: Observer) -> None:
        """What a task enqueues is written in the same transaction, before the ledger's own statement."""

        @task
        async def fan_out() -> None:
            await idle.enqueue_many([{}] * 3)

        execution = bench.deliver(fan_out)
        outcome = await bench.start(fan_out, execution)
        assert outcome.in_ledger
        counts = await postgres.fetch("SELECT state, count(*) FROM tandem_jobs GROUP BY state ORDER BY state")
        assert [tuple(row) for row in counts] == [("done", 1), ("pending", 3)]
        assert await queue.depth("arq:queue") == 3

    async def test_sync_tasks_too(self, bench: Bench, rows: Count) -> None:
        """A `Session`'s work is committed with the row of the default database."""

        @task
        def plain(session: db.Session) -> int:
            session.execute(text("INSERT INTO note (words) VALUES (gen_random_uuid()::text)"))
            return 1

        execution = bench.deliver(plain)
        assert (await bench.start(plain, execution)).in_ledger
        again = await bench.start(plain, execution)
        assert (again.kind, again.result) == (Kind.DUPLICATE, b"1")
        assert await rows() == 1

    async def test_a_sync_task_has_the_row_in_its_own_transaction(self, database_url: str, postgres: Observer) -> None:
        """The ledger's statement goes through the `Session`'s connection, the only one that the job takes."""

        @task
        def plain(session: db.Session) -> None:
            session.execute(text("INSERT INTO note (words) VALUES (gen_random_uuid()::text)"))

        await postgres.execute(NOTES)
        await create_ledger(database_url)
        async with Proxy(database_url) as proxy:
            database = Database(proxy.url, default=True, pre_ping=False)
            bench = Bench()
            try:
                await bench.run(plain)  # warm
                proxy.statements.clear()
                assert (await bench.run(plain)).in_ledger
                first_words = [statement.split()[0] for statement in proxy.statements]
                assert first_words == ["BEGIN", "INSERT", "INSERT", "COMMIT"]
                assert proxy.connections == 1
            finally:
                bench.caller.close()
                await database.dispose()


class TestSecondDelivery:
    async def test_is_rolled_back(self, bench: Bench, rows: Count) -> None:
        """A job that is delivered twice has one effect, and the stored result is what the second returns (D5)."""
        ran: list[int] = []

        @task
        async def count(session: db.AsyncSession) -> int:
            ran.append(1)
            await session.execute(INSERT, {"words": str(len(ran))})
            return len(ran)

        execution = bench.deliver(count)
        first, second = await bench.start(count, execution), await bench.start(count, execution)
        assert (first.kind, second.kind, second.result) == (Kind.COMPLETED, Kind.DUPLICATE, b"1")
        assert (len(ran), await rows()) == (2, 1)

    async def test_after_a_crash_it_does_not_even_begin(self, bench: Bench) -> None:
        """Where a worker died, the ledger is asked before the body is called: it may have done more than write rows."""
        began: list[str] = []

        @task
        async def send(session: db.AsyncSession, words: str) -> None:
            began.append(words)
            await session.execute(INSERT, {"words": words})

        execution = bench.deliver(send, "a")
        await bench.start(send, execution)
        execution.claim = execution.claim._replace(crashes=1)
        assert (await bench.start(send, execution)).kind is Kind.DUPLICATE
        assert began == ["a"]

    async def test_a_task_learns_that_it_was_started_before(self, bench: Bench) -> None:
        """`JobContext.attempt` counts tries that failed, `previous` workers that died as well."""
        seen: list[tuple[int, int]] = []

        @task
        async def look(job: worker.JobContext) -> None:
            seen.append((job.attempt, job.previous))

        execution = bench.deliver(look, tries=1)
        execution.claim = execution.claim._replace(crashes=2)
        await bench.start(look, execution)
        assert seen == [(2, 3)]

    @pytest.mark.parametrize("kind", [db.AsyncSession, db.Session])
    async def test_a_row_that_another_attempt_holds_is_not_waited_for_long(
        self, kind: type, bench: Bench, rows: Count, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """In either kind of session: the job is postponed long before the server would end its statement (D7)."""
        monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 0.2)

        @task
        def plainly(session: db.Session) -> None:
            session.execute(INSERT, {"words": "a"})

        chosen = bench.deliver(plainly) if kind is db.Session else bench.deliver(add, "a")
        message = chosen.message
        ending = Ending(message.job_id, message.enqueued_at, message.task, "arq:queue", State.DONE, result=b"1")
        async with db.scope():
            assert await Ledger().mark_done(await db.session(), ending) is None
            outcome = await bench.start(plainly if kind is db.Session else add, chosen)
        assert (outcome.kind, type(outcome.error)) == (Kind.POSTPONED, LedgerBusyError)
        assert await rows() == 0

    @pytest.mark.parametrize("kind", [db.AsyncSession, db.Session])
    async def test_a_large_result_on_a_slow_network_waits_for_nobody(
        self, kind: type, database_url: str, postgres: Observer, rows: Count, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The time that a job's own result takes is not taken for another transaction's lock: one start, one row."""
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
            bench = Bench()
            try:
                proxy.rate = 1_000_000  # bytes a second: five times what may pass for a lock
                outcome = await bench.run(fetch_plainly if kind is db.Session else fetch)
            finally:
                bench.caller.close()
                await database.dispose()
        assert (outcome.kind, outcome.in_ledger, starts) == (Kind.COMPLETED, True, [1])
        assert await rows() == 1

    async def test_a_locked_table_costs_tries_in_the_end(
        self, bench: Bench, rows: Count, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Five reruns are free, later each time; from then on each one is a try, and the last try fails the job."""
        monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 0.1)
        execution = bench.deliver(add, "a")
        async with db.scope():
            await (await db.session()).execute(text("LOCK TABLE tandem_jobs IN SHARE MODE"))
            outcomes = [await bench.start(add, execution) for _ in range(6)]
            execution.claim = execution.claim._replace(tries=2)
            outcomes.append(await bench.start(add, execution))
        kinds = [outcome.kind for outcome in outcomes]
        assert kinds == [Kind.POSTPONED] * 5 + [Kind.RETRIED, Kind.FAILED]
        assert [outcome.delay for outcome in outcomes[:5]] == [1, 2, 4, 8, 16]
        assert {type(outcome.error) for outcome in outcomes} == {LedgerBusyError}
        assert await rows() == 0

    async def test_in_a_translated_schema(self, bench: Bench, rows: Count, postgres: Observer) -> None:
        """A task whose session works in a tenant's schema leaves its rows in the ledger, which finds them again."""
        await postgres.execute("CREATE SCHEMA tenant; CREATE TABLE tenant.tandem_jobs (LIKE tandem_jobs INCLUDING ALL)")

        @task
        async def work_for_tenant(session: db.AsyncSession) -> None:
            await session.connection(execution_options={"schema_translate_map": {None: "tenant"}})
            await session.execute(text("INSERT INTO note (words) VALUES (gen_random_uuid()::text)"))
            await Ledger().add(session, [NewJob(uuid4().hex, b"{}", "send", "arq:queue", 1)])

        execution = bench.deliver(work_for_tenant)
        outcomes = [await bench.start(work_for_tenant, execution) for _ in range(2)]
        assert [outcome.kind for outcome in outcomes] == [Kind.COMPLETED, Kind.DUPLICATE]
        assert await rows() == 1
        assert await postgres.fetchval("SELECT count(*) FROM public.tandem_jobs") == 2
        assert await postgres.fetchval("SELECT count(*) FROM tenant.tandem_jobs") == 0

    async def test_where_every_session_has_another_schema(
        self, database_url: str, bench: Bench, rows: Count, postgres: Observer
    ) -> None:
        """An engine that translates the schema of all its sessions does so for the ledger, too."""
        await postgres.execute("CREATE SCHEMA app; CREATE TABLE app.tandem_jobs (LIKE tandem_jobs INCLUDING ALL)")
        translated = Database(
            database_url,
            default=True,
            engine_options={"execution_options": {"schema_translate_map": {None: "app"}}},
        )
        try:
            execution = bench.deliver(anew)
            outcomes = [await bench.start(anew, execution) for _ in range(2)]
            assert [outcome.kind for outcome in outcomes] == [Kind.COMPLETED, Kind.DUPLICATE]
            assert await rows() == 1
            assert await postgres.fetchval("SELECT count(*) FROM app.tandem_jobs") == 1
        finally:
            await translated.dispose()

    async def test_where_somebody_listens_to_statements(self, bench: Bench, database: Database[Any]) -> None:
        """Whoever listens to the statements of an engine hears of the ledger's, and may change it."""
        heard: list[str] = []

        def listen(_connection: Any, statement: Any, *_: Any) -> None:
            heard.append(type(statement).__name__)

        async with db.independent(database) as session:
            engine = session.get_bind().engine
        event.listen(engine, "before_execute", listen)
        try:
            assert (await bench.run(anew)).kind is Kind.COMPLETED
        finally:
            event.remove(engine, "before_execute", listen)
        assert heard == ["TextClause", "Insert"]

    async def test_where_reads_go_to_a_replica(self, database_url: str, bench: Bench, rows: Count) -> None:
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
            execution = bench.deliver(keep_another)
            outcomes = [await bench.start(keep_another, execution) for _ in range(2)]
            assert [outcome.kind for outcome in outcomes] == [Kind.COMPLETED, Kind.DUPLICATE]
            assert await rows() == 1
        finally:
            await routed.dispose()
            await replica.dispose()

    async def test_two_at_once(self, bench: Bench, rows: Count) -> None:
        """Of two attempts that run at the same time one commits; the other waits for it and is rolled back."""
        both = asyncio.Barrier(2)

        @task
        async def meet(session: db.AsyncSession) -> int:
            await session.execute(text("INSERT INTO note (words) VALUES (gen_random_uuid()::text)"))
            await both.wait()
            return 7

        execution = bench.deliver(meet)
        outcomes = await asyncio.gather(bench.start(meet, execution), bench.start(meet, execution))
        assert {outcome.kind for outcome in outcomes} == {Kind.COMPLETED, Kind.DUPLICATE}
        assert [outcome.result for outcome in outcomes] == [b"7", b"7"]
        assert await rows() == 1

    async def test_two_at_repeatable_read(self, bench: Bench, rows: Count) -> None:
        """40001 from the ledger's statement: the ledger is read before the job would run again."""
        both = asyncio.Barrier(2)
        began: list[int] = []

        @task
        async def meet(session: db.AsyncSession) -> int:
            began.append(1)
            await session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            await session.execute(text("INSERT INTO note (words) VALUES (gen_random_uuid()::text)"))
            await both.wait()
            return 7

        execution = bench.deliver(meet)
        outcomes = await asyncio.gather(bench.start(meet, execution), bench.start(meet, execution))
        assert {outcome.kind for outcome in outcomes} == {Kind.COMPLETED, Kind.DUPLICATE}
        assert len(began) == 2
        assert await rows() == 1

    async def test_one_that_is_stuck_keeps_nobodys_slot(
        self, bench: Bench, rows: Count, sync_database_url: str
    ) -> None:
        """A zombie holds the row: the job is put back within three seconds, at no cost (D7)."""
        execution = bench.deliver(add, "a")
        message = execution.message
        zombie = await asyncpg.connect(sync_database_url.replace("+psycopg", ""))
        try:
            async with asyncio.timeout(3):
                transaction = zombie.transaction()
                await transaction.start()
                await zombie.execute(
                    "INSERT INTO tandem_jobs (id, enqueued_at, task, queue, state) VALUES ($1, $2, 'add', 'q', 'done')",
                    message.job_id,
                    message.enqueued_at,
                )
                outcome = await bench.start(add, execution)
                await transaction.rollback()
        finally:
            await zombie.close()
        assert (outcome.kind, outcome.delay) == (Kind.POSTPONED, 1.0)
        assert await rows() == 0
        assert (await bench.start(add, execution)).kind is Kind.COMPLETED

    @pytest.mark.parametrize(
        ("state", "kind", "error"),
        [
            (State.ABORTED, Kind.ABORTED, asyncio.CancelledError),
            (State.DISCARDED, Kind.ABORTED, asyncio.CancelledError),
            (State.EXPIRED, Kind.EXPIRED, JobExpiredError),
        ],
    )
    async def test_a_job_that_is_settled_otherwise_has_no_effect(
        self, bench: Bench, rows: Count, state: State, kind: Kind, error: type[BaseException]
    ) -> None:
        """Aborted, discarded, expired: what the attempt did is rolled back."""
        execution = bench.deliver(add, "a")
        message = execution.message
        await Ledger().settle([Ending(message.job_id, message.enqueued_at, "add", "arq:queue", state)])
        outcome = await bench.start(add, execution)
        assert outcome.kind is kind
        assert isinstance(outcome.error, error)
        assert await rows() == 0

    async def test_a_pending_row_is_settled_by_the_job(self, bench: Bench, rows: Count) -> None:
        """A job that was enqueued in a transaction sets its own row done."""
        execution = bench.deliver(add, "a")
        message = execution.message
        row = NewJob(message.job_id, encode("add", b"{}", now_ms()), "add", "arq:queue", message.enqueued_at)
        async with db.scope():
            await Ledger().add(await db.session(), [row])
        assert (await bench.start(add, execution)).kind is Kind.COMPLETED
        assert await known(execution) == Known(State.DONE, b'"a"')
        assert await rows() == 1


class TestLostCommit:
    """A2: the connection is lost in the COMMIT, and nobody heard whether it happened."""

    @pytest.fixture
    async def proxy(self, database_url: str, postgres: Observer) -> AsyncIterator[Proxy]:
        await postgres.execute(NOTES)
        await create_ledger(database_url)
        async with Proxy(database_url) as proxy:
            database = Database(proxy.url, default=True, pre_ping=False)
            yield proxy
            await database.dispose()

    @pytest.fixture
    async def through(self, proxy: Proxy) -> AsyncIterator[Bench]:
        """An executor behind the proxy."""
        assert proxy.url  # the default database leads through it
        bench = Bench()
        yield bench
        bench.caller.close()

    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_either_way_there_is_one_effect(
        self, proxy: Proxy, through: Bench, rows: Count, when: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Whether the server saw the COMMIT or not: one row, and the job has completed."""
        runs: list[str] = []

        @task
        async def note(session: db.AsyncSession) -> str:
            runs.append("run")
            await session.execute(text("INSERT INTO note (words) VALUES (gen_random_uuid()::text)"))
            return "done"

        trap = proxy.drop_on("^COMMIT", when=when)
        outcome = await through.run(note)
        assert trap.sprung
        assert (outcome.kind, outcome.result, outcome.in_ledger) == (Kind.COMPLETED, b'"done"', True)
        assert await rows() == 1
        assert len(runs) == (2 if when == "before" else 1)
        assert "the connection was lost in the COMMIT; the ledger is asked" in caplog.text

    @pytest.mark.parametrize("when", ["before", "after"])
    async def test_of_a_sync_task(self, proxy: Proxy, through: Bench, rows: Count, when: Any) -> None:
        """A `Session`'s COMMIT, too."""
        runs: list[str] = []

        @task
        def note(session: db.Session) -> str:
            runs.append("run")
            session.execute(text("INSERT INTO note (words) VALUES (gen_random_uuid()::text)"))
            return "done"

        trap = proxy.drop_on("^COMMIT", when=when)
        outcome = await through.run(note)
        assert trap.sprung
        assert (outcome.kind, outcome.result, outcome.in_ledger) == (Kind.COMPLETED, b'"done"', True)
        assert await rows() == 1
        assert len(runs) == (2 if when == "before" else 1)

    async def test_the_answer_is_waited_for(
        self, proxy: Proxy, through: Bench, rows: Count, caplog: pytest.LogCaptureFixture
    ) -> None:
        """While the database takes no connections the fate is unknown: the job is held, neither done nor run again."""
        await through.run(anew)
        proxy.refuse()  # new connections: the one that is open goes on
        proxy.drop_on("^COMMIT", when="after")
        execution = through.deliver(anew)
        job = through.start(anew, execution)
        await eventually(lambda: "the ledger is asked" in caplog.text)
        begun = execution.attempt_began
        done, _ = await asyncio.wait({job}, timeout=1)
        assert not done
        assert execution.attempt_began > begun  # the lease is kept meanwhile
        await proxy.resume()
        assert (await job).kind is Kind.COMPLETED
        assert await rows() == 2

    async def test_a_look_that_is_not_answered_keeps_the_lease(self, proxy: Proxy, through: Bench, rows: Count) -> None:
        """A job that was started before is held while the database that is asked about it is away, and then runs."""
        execution = through.deliver(anew)
        execution.claim = execution.claim._replace(crashes=1)
        proxy.refuse()
        job = through.start(anew, execution)
        for _ in range(3):
            begun = execution.attempt_began
            await eventually(lambda: execution.attempt_began > begun)  # noqa: B023 - asked at once
        assert not job.done()
        await proxy.resume()
        assert (await job).kind is Kind.COMPLETED
        assert await rows() == 1

    @pytest.mark.parametrize(("asked", "kind"), [(Kind.INTERRUPTED, Kind.INTERRUPTED), (Kind.ABORTED, Kind.COMPLETED)])
    async def test_a_worker_that_ends_meanwhile_leaves_it_to_the_next(
        self, proxy: Proxy, through: Bench, rows: Count, asked: Kind, kind: Kind, caplog: pytest.LogCaptureFixture
    ) -> None:
        """A shutdown puts the job back, and the ledger decides later; an abort comes too late."""
        await through.run(add, "warm")
        proxy.refuse()  # new connections: the one that is open goes on
        proxy.drop_on("^COMMIT", when="after")
        execution = through.deliver(anew)
        job: asyncio.Task[Outcome] = through.start(anew, execution)
        await eventually(lambda: "the ledger is asked" in caplog.text)
        execution.cancelled_as = asked
        job.cancel()
        done, _ = await asyncio.wait({job}, timeout=0.2)
        assert bool(done) is (kind is Kind.INTERRUPTED)
        await proxy.resume()
        assert (await job).kind is kind
        execution.cancelled_as = None
        assert (await through.start(anew, execution)).kind is Kind.DUPLICATE
        assert await rows() == 2

    async def test_a_cancellation_that_nobody_asked_for(
        self, proxy: Proxy, through: Bench, rows: Count, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The ledger is asked again, as the job may be committed: only the engine's word leaves it to the next."""
        await through.run(add, "warm")
        proxy.refuse()
        proxy.drop_on("^COMMIT", when="after")
        job: asyncio.Task[Outcome] = through.start(anew, through.deliver(anew))
        await eventually(lambda: "the ledger is asked" in caplog.text)
        job.cancel()
        done, _ = await asyncio.wait({job}, timeout=0.2)
        assert not done
        await proxy.resume()
        assert (await job).kind is Kind.COMPLETED
        assert await rows() == 2

    async def test_the_old_backend_is_waited_for(self, own_postgres: StartPostgres) -> None:
        """A COMMIT that is still on its way in the server when the ledger is asked is not taken for none."""
        server = own_postgres()
        async with Proxy(server.url) as proxy:
            database = Database(proxy.url, default=True, pre_ping=False)
            bench = Bench()
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
                job = bench.start(add, bench.deliver(add, "a"))
                await eventually(lambda: proxy.count("^COMMIT") == 1)
                await asyncio.sleep(0.2)  # the server has it by now
                await proxy.drop()
                outcome = await job
                assert (outcome.kind, outcome.in_ledger) == (Kind.COMPLETED, True)
                assert await connection.fetchval("SELECT count(*) FROM note") == 1
            finally:
                await connection.close()
                bench.caller.close()
                await database.dispose()

"""Job rows, on PostgreSQL and SQLite: which outcome may be written over which, and what the relay reads."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import asyncpg

import db
from tests.servers import Observer
from tests.waiting import eventually
from worker.errors import LedgerBusyError
from worker.ledger import FinalRow, IdRange, Ledger, State, StoredResult, table
from worker.ledger.execute import execute
from worker.ledger.statements import Statements
from worker.ledger.table import NAME
from worker.new_job import NewJob

ROW = NewJob("j1", b'{"f":"send"}', "send", "arq:queue", 1_000)
DONE = FinalRow("j1", 1_000, "send", "arq:queue", State.DONE, result=b"7")
FAILED = DONE._replace(state=State.FAILED, result=b'{"type":"E"}', error="E: no", traceback="E", tries=3)


@pytest.fixture
def ledger(database: db.Database[Any]) -> Ledger:
    return Ledger()


async def add(ledger: Ledger, *rows: NewJob) -> None:
    async with db.scope():
        await ledger.add(await db.session(), rows)


async def mark_done(ledger: Ledger, row: FinalRow = DONE) -> StoredResult | None:
    async with db.scope():
        return await ledger.mark_done(await db.session(), row)


async def state(ledger: Ledger, job_id: str = "j1") -> State | None:
    known = await ledger.look_up(job_id, 1_000)
    return known and known.state


async def alter(statement: str) -> None:
    async with db.scope():
        await execute(await db.session(), text(statement), {})


class TestRowsAtOnce:
    @pytest.mark.parametrize("origin", [{}, {"parent": "p1", "traceparent": "00-trace-span-01"}])
    @pytest.mark.parametrize("times", [{}, {"delay": 60_000, "expires": 5_000}, {"due": 1_900_000_000_000}])
    async def test_rows_are_the_same_however_many_are_written_at_once(
        self, ledger: Ledger, origin: dict[str, Any], times: dict[str, Any]
    ) -> None:
        """One, a few, or as many as arrays are made for; on their own and, from the second time on, with the COMMIT."""
        found: list[dict[str, Any]] = []
        for count in (1, 3, 60):
            for written in (ledger.add, ledger.add_in_commit, ledger.add_in_commit):
                ids = [f"{written.__name__}-{len(found)}-{number}" for number in range(count)]
                async with db.scope():
                    await written(await db.session(), [ROW._replace(id=each, **origin, **times) for each in ids])
                found += [dict(await ledger.latest(ids[-1]) or {})]
        expected = {"state": "pending", "payload": ROW.payload, "task": "send", "queue": "arq:queue"}
        assert all(row.items() >= (expected | origin).items() for row in found)
        assert {row["patience"] for row in found} == {times.get("expires")}
        if "due" in times:
            assert {row["due"] for row in found} == {times["due"]}
        else:
            assert all(0 <= row["now"] + times.get("delay", 0) - row["due"] < 30_000 for row in found)
        assert all(0 <= row["check_at"] - row["due"] - 3000 <= 400 for row in found)


class TestOutcomes:
    async def test_done_overwrites_a_pending_row_and_nothing_overwrites_done(self, ledger: Ledger) -> None:
        """The first attempt to commit decides the outcome. A later one is given its result, and changes nothing."""
        await add(ledger, ROW)
        assert await mark_done(ledger) is None
        assert await mark_done(ledger, DONE._replace(result=b"8")) == StoredResult(State.DONE, b"7")
        await ledger.complete([FAILED])
        assert await ledger.look_up("j1", 1_000) == StoredResult(State.DONE, b"7")

    @pytest.mark.parametrize("keeps", [False, True])
    async def test_a_row_that_is_set_done_loses_its_payload_unless_arguments_are_kept(
        self, ledger: Ledger, *, keeps: bool
    ) -> None:
        """By the statement of the job's own transaction, and by that of a batch."""
        keeping = Ledger(keep_arguments=keeps)
        await add(ledger, ROW, ROW._replace(id="j2"))
        await mark_done(keeping)
        await keeping.complete([DONE._replace(id="j2")])
        for job_id in ("j1", "j2"):
            row = await ledger.latest(job_id)
            assert row is not None
            assert (row["state"], row["payload"]) == ("done", ROW.payload if keeps else None)

    async def test_a_row_keeps_its_payload_until_it_is_done(self, ledger: Ledger) -> None:
        """A failed job may be retried. An aborted or expired one is shown with its arguments."""
        states = {each.value: each for each in (State.FAILED, State.ABORTED, State.EXPIRED)}
        await add(ledger, *(ROW._replace(id=job_id) for job_id in states))
        await ledger.complete([FAILED._replace(id=job_id, state=state) for job_id, state in states.items()])
        for job_id in states:
            row = await ledger.latest(job_id)
            assert row is not None
            assert (row["state"], row["payload"]) == (job_id, ROW.payload)
        await ledger.complete([DONE._replace(id="failed")])
        row = await ledger.latest("failed")
        assert row is not None
        assert (row["state"], row["payload"]) == ("done", None)

    async def test_a_batch_of_outcomes_overwrites_only_rows_that_may_be_overwritten(self, ledger: Ledger) -> None:
        """A batch is one statement."""
        await mark_done(ledger)
        await ledger.complete([FAILED, FAILED._replace(id="j2"), FAILED._replace(id="j3")])
        assert [await state(ledger, job_id) for job_id in ("j1", "j2", "j3")] == ["done", "failed", "failed"]

    async def test_a_row_keeps_its_origin_however_it_is_written(self, ledger: Ledger) -> None:
        """A pending row, a row that is made when the job ends, a row of a batch. An outcome does not change it."""
        origin: dict[str, Any] = {"parent": "p1", "traceparent": "00-trace-span-01"}
        await add(ledger, ROW._replace(id="j0"), ROW._replace(**origin))
        async with db.scope():
            assert await ledger.reserve(await db.session(), ROW._replace(id="j4", **origin))
        await mark_done(ledger)
        await mark_done(ledger, DONE._replace(id="j2", **origin))
        await ledger.complete([FAILED._replace(id="j3", **origin), FAILED._replace(id="j5")])
        for job_id, expected in (("j0", None), ("j5", None), *((f"j{number}", origin) for number in range(1, 5))):
            row = await ledger.latest(job_id)
            assert row is not None
            assert {name: row[name] for name in origin} == (expected or dict.fromkeys(origin)), job_id

    async def test_a_job_without_an_origin_is_written_as_in_a_table_of_the_first_version(self, ledger: Ledger) -> None:
        """Its statements do not name the two columns, so it writes not a byte more, and needs no migrated table."""
        await alter(f"DROP INDEX {NAME}_parent")
        await alter(f"ALTER TABLE {NAME} DROP COLUMN parent")
        await alter(f"ALTER TABLE {NAME} DROP COLUMN traceparent")
        await add(ledger, ROW)
        await mark_done(ledger)
        await ledger.complete([FAILED._replace(id="j2")])
        assert [await state(ledger, job_id) for job_id in ("j1", "j2")] == ["done", "failed"]

    async def test_a_job_without_a_row_gets_a_done_row_once(self, ledger: Ledger) -> None:
        """It was enqueued outside a transaction."""
        assert await mark_done(ledger) is None
        assert await mark_done(ledger) == StoredResult(State.DONE, b"7")

    async def test_a_job_of_the_same_id_and_another_enqueue_time_has_a_row_of_its_own(self, ledger: Ledger) -> None:
        """An id that is free and used again is another job."""
        assert await mark_done(ledger) is None
        assert await mark_done(ledger, DONE._replace(enqueued_at=2_000, result=b"8")) is None
        latest = await ledger.latest("j1")
        assert latest is not None
        assert latest["result"] == b"8"

    async def test_done_overwrites_a_failed_row(self, ledger: Ledger) -> None:
        """Another attempt may have committed before this one failed."""
        await ledger.complete([FAILED])
        assert await state(ledger) is State.FAILED
        assert await mark_done(ledger) is None
        latest = await ledger.latest("j1")
        assert latest is not None
        assert (latest["state"], latest["error"], latest["check_at"]) == ("done", None, None)

    @pytest.mark.parametrize("final", [State.ABORTED, State.DISCARDED, State.EXPIRED])
    async def test_a_job_aborted_discarded_or_expired_cannot_be_set_done(self, ledger: Ledger, final: State) -> None:
        """Its attempt is given that state before it commits."""
        await ledger.complete([DONE._replace(state=final, result=None)])
        assert await mark_done(ledger) == StoredResult(final, None)

    async def test_an_attempt_gives_up_after_a_short_wait_for_a_row_that_another_one_holds(
        self, database_url: str, postgres: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The attempt waits, but not so long that the worker's slot is lost."""
        monkeypatch.setattr("worker.ledger.lock_wait._LOCK_WAIT", 0.5)
        database = db.Database(database_url, default=True)
        await postgres.execute("SELECT 1")
        async with db.scope():
            session = await db.session()
            await (await session.connection()).run_sync(table().metadata.create_all)
        ledger = Ledger()
        try:
            async with db.scope():
                assert await ledger.mark_done(await db.session(), DONE) is None
                with pytest.raises(LedgerBusyError):
                    await asyncio.create_task(db.isolated(mark_done, ledger))
            assert await mark_done(ledger) == StoredResult(State.DONE, b"7")
        finally:
            await database.dispose()
            db.set_default_database(None)


class TestPendingRows:
    async def test_a_pending_id_cannot_be_reserved_until_its_job_has_ended(self, ledger: Ledger) -> None:
        """Then a second job of the id has a row of its own."""
        async with db.scope():
            session = await db.session()
            assert await ledger.reserve(session, ROW)
            assert not await ledger.reserve(session, ROW._replace(enqueued_at=2_000))
        await mark_done(ledger)
        async with db.scope():
            assert await ledger.reserve(await db.session(), ROW._replace(enqueued_at=2_000))

    async def test_due_rows_are_read_in_pieces_by_time_and_id_and_fresh_rows_are_not(self, ledger: Ledger) -> None:
        """A fresh row is published by the process that committed it."""
        rows = [ROW._replace(id=f"j{number}", queue="other" if number == 2 else ROW.queue) for number in range(5)]
        await add(ledger, *rows)
        start = (-1, "")
        assert await ledger.due(start, 10) == []
        await alter("UPDATE tandem_jobs SET check_at = 7 WHERE id IN ('j1', 'j2', 'j3')")
        await alter("UPDATE tandem_jobs SET check_at = 6 WHERE id = 'j4'")
        first = await ledger.due(start, 2)
        assert first == [(6, "j4", 1_000, "arq:queue"), (7, "j1", 1_000, "arq:queue")]
        assert await ledger.due((7, "j1"), 2) == [(7, "j2", 1_000, "other"), (7, "j3", 1_000, "arq:queue")]
        assert await ledger.due((7, "j3"), 2) == []
        assert await ledger.due(start, 2) == first

    async def test_all_pending_rows_of_some_queues_are_read_in_pieces_by_id(self, ledger: Ledger) -> None:
        """Whenever they are due."""
        rows = [ROW._replace(id=f"j{number}", queue=("mail", "slow", "other")[number % 3]) for number in range(9)]
        await add(ledger, *rows)
        await mark_done(ledger, DONE._replace(id="j3"))
        found: list[str] = []
        while piece := await ledger.pending_after(found[-1] if found else "", ["mail", "slow"], 2):
            assert len(piece) <= 2
            found += [job_id for job_id, _, _ in piece]
        assert found == ["j0", "j1", "j4", "j6", "j7"]

    async def test_the_pending_row_at_a_share_of_all_divides_them_in_that_proportion(self, ledger: Ledger) -> None:
        """By their number, not by their ids, of which most begin alike."""
        assert await ledger.pending_at(500) == ""
        await add(ledger, *(ROW._replace(id=f"j{number}") for number in range(8)), ROW._replace(id="z"))
        await mark_done(ledger, DONE._replace(id="j0"))
        assert [await ledger.pending_at(permille) for permille in (0, 500, 999)] == ["j1", "j5", "z"]

    async def test_the_last_slot_of_a_scheduled_task_is_not_confused_with_those_of_similar_names(
        self, ledger: Ledger
    ) -> None:
        """Nor with a job whose id the caller chose."""
        earlier, last, others = 1_700_000_000_000, 1_700_000_300_000, 1_700_000_900_000
        await add(
            ledger,
            ROW._replace(id=f"cron:a:{earlier}", task="a", enqueued_at=earlier),
            ROW._replace(id=f"cron:a:{last}", task="a", enqueued_at=last),
            ROW._replace(id="cron:a:later", task="a", enqueued_at=others),
            ROW._replace(id=f"cron:a:b:{others}", task="a:b", enqueued_at=others),
            ROW._replace(id=f"cron:a:9b:{others}", task="a:9b", enqueued_at=others),
        )
        ranges = [IdRange.of_numbers(name, f"cron:{name}:") for name in ("none", "a", "a:b", "a:9b")]
        assert await ledger.last_enqueued(ranges) == [None, last, others, others]
        assert await ledger.last_enqueued([IdRange.of_id("a", "cron:a:later")]) == [others]
        assert await ledger.last_enqueued([]) == []

    async def test_the_last_slots_of_more_tasks_than_one_statement_takes_keep_their_order(self, ledger: Ledger) -> None:
        """Each is that of its own range."""
        await add(
            ledger, *(ROW._replace(id=f"cron:t{n}:{n}", task=f"t{n}", enqueued_at=n) for n in range(0, 1200, 100))
        )
        last = await ledger.last_enqueued([IdRange.of_numbers(f"t{n}", f"cron:t{n}:") for n in range(1200)])
        assert last == [None if n % 100 else n for n in range(1200)]

    async def test_a_row_is_read_only_by_its_id_and_its_enqueue_time(self, ledger: Ledger) -> None:
        """An earlier or later job of the id has another enqueue time, and so another row."""
        await add(ledger, ROW)
        assert await ledger.unpublished([("j1", 2_000)]) == []
        assert len(await ledger.unpublished([("j1", 1_000), ("j1", 2_000)])) == 1

    async def test_rows_are_read_in_batches_bounded_in_bytes(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A key without a row is part of a batch, too."""
        monkeypatch.setattr("worker.ledger.ledger._AT_ONCE", 1000)
        sizes = {"j1": 400, "j2": 400, "j3": 400, "j4": 5000, "j5": 1}
        await add(ledger, *(ROW._replace(id=job_id, payload=b"x" * size) for job_id, size in sizes.items()))
        keys = [(job_id, 1_000) for job_id in (*sizes, "gone")]
        batches = await ledger.in_batches(keys, 500)
        assert [[job_id for job_id, _ in batch] for batch in batches] == [["j1", "j2"], ["j3"], ["j4"], ["j5", "gone"]]
        assert await ledger.in_batches(keys[-2:], 1) == [keys[-2:-1], keys[-1:]]

    async def test_pending_rows_are_read_with_their_delay_and_expiry_by_the_databases_clock(
        self, ledger: Ledger
    ) -> None:
        """The time of a job that was due before its enqueue counts from when its row is written."""
        await add(
            ledger,
            ROW,
            ROW._replace(id="late", expires=1),
            ROW._replace(id="due before", due=5_000, expires=60_000),
            ROW._replace(id="later", delay=60_000, expires=1_000),
            ROW._replace(id="ended"),
        )
        await mark_done(ledger, DONE._replace(id="ended"))
        ids = ("j1", "late", "due before", "later", "ended")

        async def has_expired() -> bool:
            late = await ledger.pending("late")
            return late is not None and late.expired

        await eventually(has_expired)
        found = {row.id: row for row in await ledger.unpublished([(i, 1_000) for i in ids])}
        assert set(found) == {"j1", "late", "due before", "later"}
        assert -10_000 < found["j1"].delay <= 0
        assert (found["j1"].patience, found["j1"].expired) == (None, False)
        assert -10_000 < found["due before"].delay <= 0
        assert not found["due before"].expired
        assert 50_000 < found["later"].delay <= 60_000
        assert not found["later"].expired
        assert found["j1"].payload == ROW.payload
        pending = await ledger.pending("later")
        assert pending is not None
        assert pending.queue == "arq:queue"

    async def test_a_deferred_row_is_checked_shortly_after_it_is_due(self, ledger: Ledger) -> None:
        """Not before: Redis has the job already."""
        await add(ledger, ROW._replace(delay=60_000))
        row = await ledger.latest("j1")
        assert row is not None
        assert 3_000 <= row["check_at"] - row["due"] < 4_000  # the clock is read for each, and it is spread


class TestQueryPlans:
    """On PostgreSQL: with a million pending rows, each statement of the relay reads only the rows that it needs."""

    @pytest.mark.parametrize(
        ("statement", "parameters", "condition"),
        [
            ("due", {"after_time": 7, "after_id": "a", "limit": 500}, "Index Cond: ((check_at >= "),
            ("unpublished", {"ids": ["a", "b"]}, "Index Cond: (id = ANY"),
            ("sizes", {"ids": ["a", "b"]}, "Index Cond: (id = ANY"),
            ("pending_at", {"permille": 500}, "Index Only Scan using tandem_jobs_pending"),
            ("pending_after", {"after": "a", "queues": ["mail"], "limit": 500}, "Index Cond: (id > "),
            ("stored_results", {"ids": ["a", "b"], "since": 1_000}, "Index Cond: ((id = ANY"),
            ("prune", {"limit": 500, "keep": 1000, "after": 7}, "Index Cond: ((finished_at < "),
            ("last_enqueued", {"first": ["a"], "end": ["b"], "task": ["a"]}, "Index Cond: ((id >= "),
        ],
    )
    async def test_each_statement_reads_a_bounded_range_of_an_index(
        self, postgres: Observer, statement: str, parameters: dict[str, Any], condition: str
    ) -> None:
        """No row is read only to be skipped."""
        compiled = getattr(Statements.of("postgresql", NAME), statement).compile(dialect=asyncpg.dialect())  # type: ignore[no-untyped-call]
        sent = compiled.construct_expanded_state(parameters)
        await postgres.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        plan = [line for (line,) in await postgres.fetch(f"EXPLAIN {sent.statement}", *sent.positional_parameters)]
        assert any(condition in line for line in plan), plan

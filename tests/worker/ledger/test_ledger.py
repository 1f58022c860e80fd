"""Job rows, on PostgreSQL and SQLite: what is written over what, and what the relay reads."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import asyncpg

import db
from tests.servers import Observer
from tests.waiting import eventually
from worker.errors import LedgerBusyError
from worker.ledger import Ending, Known, Ledger, State, table
from worker.ledger.execution import execute
from worker.ledger.statements import Statements
from worker.ledger.table import NAME
from worker.new_job import NewJob

ROW = NewJob("j1", b'{"f":"send"}', "send", "arq:queue", 1_000)
DONE = Ending("j1", 1_000, "send", "arq:queue", State.DONE, result=b"7")
FAILED = DONE._replace(state=State.FAILED, result=b'{"type":"E"}', error="E: no", traceback="E", tries=3)


@pytest.fixture
def ledger(database: db.Database[Any]) -> Ledger:
    return Ledger()


async def add(ledger: Ledger, *rows: NewJob) -> None:
    async with db.scope():
        await ledger.add(await db.session(), rows)


async def mark_done(ledger: Ledger, ending: Ending = DONE) -> Known | None:
    async with db.scope():
        return await ledger.mark_done(await db.session(), ending)


async def state(ledger: Ledger, job_id: str = "j1") -> State | None:
    known = await ledger.look_up(job_id, 1_000)
    return known and known.state


async def alter(statement: str) -> None:
    async with db.scope():
        await execute(await db.session(), text(statement), {})


class TestEndings:
    async def test_done_overwrites_a_pending_row_and_nothing_overwrites_done(self, ledger: Ledger) -> None:
        """The first attempt to commit settles the job; a later one is told its result, and changes nothing."""
        await add(ledger, ROW)
        assert await mark_done(ledger) is None
        assert await mark_done(ledger, DONE._replace(result=b"8")) == Known(State.DONE, b"7")
        await ledger.settle([FAILED])
        assert await ledger.look_up("j1", 1_000) == Known(State.DONE, b"7")

    async def test_several_endings_at_once(self, ledger: Ledger) -> None:
        """A batch of them is one statement, and each is written over what may be overwritten."""
        await mark_done(ledger)
        await ledger.settle([FAILED, FAILED._replace(id="j2"), FAILED._replace(id="j3")])
        assert [await state(ledger, job_id) for job_id in ("j1", "j2", "j3")] == ["done", "failed", "failed"]

    async def test_a_job_without_a_row_gets_one(self, ledger: Ledger) -> None:
        """A job that was enqueued directly is known by its done row, once."""
        assert await mark_done(ledger) is None
        assert await mark_done(ledger) == Known(State.DONE, b"7")

    async def test_another_enqueue_time_is_another_row(self, ledger: Ledger) -> None:
        """A freed id that is used again is another job."""
        assert await mark_done(ledger) is None
        assert await mark_done(ledger, DONE._replace(enqueued_at=2_000, result=b"8")) is None
        latest = await ledger.latest("j1")
        assert latest is not None
        assert latest["result"] == b"8"

    async def test_a_failed_row_may_be_done_yet(self, ledger: Ledger) -> None:
        """An attempt that failed here may have been outrun by one that has committed."""
        await ledger.settle([FAILED])
        assert await state(ledger) is State.FAILED
        assert await mark_done(ledger) is None
        latest = await ledger.latest("j1")
        assert latest is not None
        assert (latest["state"], latest["error"], latest["check_at"]) == ("done", None, None)

    @pytest.mark.parametrize("final", [State.ABORTED, State.DISCARDED, State.EXPIRED])
    async def test_a_final_state_refuses_effects(self, ledger: Ledger, final: State) -> None:
        """A job that was aborted, discarded or has expired is told so before it commits."""
        await ledger.settle([DONE._replace(state=final, result=None)])
        assert await mark_done(ledger) == Known(final, None)

    async def test_two_attempts_at_once(
        self, database_url: str, postgres: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The second waits for the first, and gives up before its slot is lost to it (D7)."""
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
            assert await mark_done(ledger) == Known(State.DONE, b"7")
        finally:
            await database.dispose()
            db.set_default_database(None)


class TestPendingRows:
    async def test_an_id_is_reserved_once(self, ledger: Ledger) -> None:
        """A second job of an id that is pending is not written; after the end of the first it is."""
        async with db.scope():
            session = await db.session()
            assert await ledger.reserve(session, ROW)
            assert not await ledger.reserve(session, ROW._replace(enqueued_at=2_000))
        await mark_done(ledger)
        async with db.scope():
            assert await ledger.reserve(await db.session(), ROW._replace(enqueued_at=2_000))

    async def test_the_relay_reads_what_has_not_been_looked_after_for_a_while(self, ledger: Ledger) -> None:
        """A fresh row is left to whoever committed it; the others come in pieces, those of one moment by id."""
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

    async def test_all_that_is_pending_can_be_gone_through(self, ledger: Ledger) -> None:
        """In pieces, by id, whenever it is to be looked after; only the rows of some queues."""
        rows = [ROW._replace(id=f"j{number}", queue=("mail", "slow", "other")[number % 3]) for number in range(9)]
        await add(ledger, *rows)
        await mark_done(ledger, DONE._replace(id="j3"))
        found: list[str] = []
        while piece := await ledger.pending_after(found[-1] if found else "", ["mail", "slow"], 2):
            assert len(piece) <= 2
            found += [job_id for job_id, _, _ in piece]
        assert found == ["j0", "j1", "j4", "j6", "j7"]

    async def test_the_last_slot_of_a_task_is_its_own(self, ledger: Ledger) -> None:
        """That of a task whose name begins alike does not count, nor an id that somebody made up."""
        earlier, last, others = 1_700_000_000_000, 1_700_000_300_000, 1_700_000_900_000
        await add(
            ledger,
            ROW._replace(id=f"cron:a:{earlier}", task="a", enqueued_at=earlier),
            ROW._replace(id=f"cron:a:{last}", task="a", enqueued_at=last),
            ROW._replace(id="cron:a:later", task="a", enqueued_at=others),
            ROW._replace(id=f"cron:a:b:{others}", task="a:b", enqueued_at=others),
            ROW._replace(id=f"cron:a:9b:{others}", task="a:9b", enqueued_at=others),
        )
        assert await ledger.last_enqueued("a", "cron:a:") == last
        assert await ledger.last_enqueued("none", "cron:none:") is None

    async def test_another_job_of_a_pending_id_is_not_read(self, ledger: Ledger) -> None:
        """D14: a row is known by its id and its enqueue time."""
        await add(ledger, ROW)
        assert await ledger.unpublished([("j1", 2_000)]) == []
        assert len(await ledger.unpublished([("j1", 1_000), ("j1", 2_000)])) == 1

    async def test_what_is_read_at_once_is_bounded_in_bytes(
        self, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rows with large payloads are read a few at a time; one that is gone is in a batch, too."""
        monkeypatch.setattr("worker.ledger.ledger._AT_ONCE", 1000)
        sizes = {"j1": 400, "j2": 400, "j3": 400, "j4": 5000, "j5": 1}
        await add(ledger, *(ROW._replace(id=job_id, payload=b"x" * size) for job_id, size in sizes.items()))
        keys = [(job_id, 1_000) for job_id in (*sizes, "gone")]
        batches = await ledger.in_batches(keys, 500)
        assert [[job_id for job_id, _ in batch] for batch in batches] == [["j1", "j2"], ["j3"], ["j4"], ["j5", "gone"]]
        assert await ledger.in_batches(keys[-2:], 1) == [keys[-2:-1], keys[-1:]]

    async def test_what_is_pending_still_is_read_with_what_its_publishing_takes(self, ledger: Ledger) -> None:
        """Due and expiry are told by the database's clock; a job that was due before counts from when it is written."""
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

    async def test_a_deferred_row_is_looked_after_when_it_is_due(self, ledger: Ledger) -> None:
        """Not before: it is in Redis already, and will be for long."""
        await add(ledger, ROW._replace(delay=60_000))
        row = await ledger.latest("j1")
        assert row is not None
        assert 3_000 <= row["check_at"] - row["due"] < 4_000  # the clock is read for each, and it is spread


class TestPlans:
    """On PostgreSQL: with a million pending rows, what the relay does every second reads those that it is after."""

    @pytest.mark.parametrize(
        ("statement", "parameters", "condition"),
        [
            ("due", {"after_time": 7, "after_id": "a", "limit": 500}, "Index Cond: ((check_at >= "),
            ("unpublished", {"ids": ["a", "b"]}, "Index Cond: (id = ANY"),
            ("sizes", {"ids": ["a", "b"]}, "Index Cond: (id = ANY"),
            ("pending_after", {"after": "a", "queues": ["mail"], "limit": 500}, "Index Cond: (id > "),
            ("standing", {"ids": ["a", "b"], "since": 1_000}, "Index Cond: ((id = ANY"),
            ("prune", {"limit": 500, "keep": 1000}, "Index Cond: (finished_at < "),
            ("last_enqueued", {"first": "a", "end": "b", "task": "a"}, "Index Cond: ((id >= "),
        ],
    )
    async def test_indexes_are_read_within_bounds(
        self, postgres: Observer, statement: str, parameters: dict[str, Any], condition: str
    ) -> None:
        """No row is read only to be passed over."""
        compiled = getattr(Statements.of("postgresql", NAME), statement).compile(dialect=asyncpg.dialect())  # type: ignore[no-untyped-call]
        sent = compiled.construct_expanded_state(parameters)
        await postgres.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        plan = [line for (line,) in await postgres.fetch(f"EXPLAIN {sent.statement}", *sent.positional_parameters)]
        assert any(condition in line for line in plan), plan

"""The pruner: rows of jobs that ended long ago are deleted, and no others; on PostgreSQL and SQLite."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import make_url, text

import db
from tests.servers import Observer
from tests.waiting import eventually
from worker.engine import pruner
from worker.engine.pruner import Pruner
from worker.ledger import Ledger, State
from worker.ledger.statements import Statements

HOUR = 3_600_000
_NOW = {
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)",
    "sqlite": "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)",
}


@pytest.fixture(params=["postgresql", "sqlite"])
async def database(
    request: pytest.FixtureRequest, database_url: str, sqlite_url: str
) -> AsyncIterator[db.Database[Any]]:
    """The default database, with an empty ledger."""
    url = database_url if request.param == "postgresql" else sqlite_url
    database: db.Database[Any] = db.Database(url, default=True)
    yield database
    await database.dispose()
    db.set_default_database(None)


async def ended(database: db.Database[Any], state: State, ago: int, *ids: str) -> None:
    """There are jobs that ended so many milliseconds ago; a pending one has not."""
    finished_at = "NULL" if state is State.PENDING else f"{_NOW[database.kind]} - {ago}"
    async with db.scope():
        session = await db.session()
        await session.execute(
            text(
                "INSERT INTO tandem_jobs (id, enqueued_at, task, queue, state, finished_at)"
                f" VALUES (:id, 1, 'send', 'mail', '{state}', {finished_at})"
            ),
            [{"id": job_id} for job_id in ids],
        )


async def left() -> set[str]:
    async with db.scope():
        return set((await (await db.session()).execute(text("SELECT id FROM tandem_jobs"))).scalars())


async def test_only_rows_of_jobs_that_ended_long_ago_are_deleted(database: db.Database[Any]) -> None:
    """In every final state. Pending and failed rows stay, however old they are."""
    for state in State:
        await ended(database, state, 2 * HOUR, f"old {state}")
        await ended(database, state, HOUR // 2, f"new {state}")
    assert (await Ledger().prune(HOUR, 100))[0] == 4
    assert await left() == {*(f"new {state}" for state in State), "old pending", "old failed"}


async def test_rows_are_pruned_in_batches_the_oldest_first(
    database: db.Database[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction deletes one batch. A round goes on until nothing is left, then waits."""
    monkeypatch.setattr(pruner, "_BATCH", 2)
    monkeypatch.setattr(pruner, "_LONGEST_REST", 0.0)
    monkeypatch.setattr(pruner, "_INTERVAL", 0.01)
    for hours in range(2, 7):
        await ended(database, State.DONE, hours * HOUR, f"{hours}")
    assert (await Ledger().prune(HOUR, 2))[0] == 2
    assert await left() == {"2", "3", "4"}
    running = asyncio.create_task(Pruner(Ledger(), 3600.0).run())
    await eventually(left, equals=set())
    await ended(database, State.ABORTED, 2 * HOUR, "later")
    await eventually(left, equals=set())
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()


async def test_a_worker_prunes_as_soon_as_it_starts(database: db.Database[Any]) -> None:
    """So a short-lived worker prunes, too."""
    await ended(database, State.DONE, 2 * HOUR, "a")
    running = asyncio.create_task(Pruner(Ledger(), 3600.0).run())
    await eventually(left, equals=set())
    running.cancel()
    await asyncio.wait({running})


@pytest.fixture
async def postgres_database(database_url: str) -> AsyncIterator[db.Database[Any]]:
    """The default database on PostgreSQL."""
    database: db.Database[Any] = db.Database(database_url, default=True)
    yield database
    await database.dispose()
    db.set_default_database(None)


async def test_rows_that_another_pruner_has_locked_are_skipped(postgres_database: db.Database[Any]) -> None:
    """Two workers that prune at the same time delete different rows, and neither waits."""
    await ended(postgres_database, State.DONE, 2 * HOUR, "a", "b", "c")
    async with db.scope():
        session = await db.session()
        await session.execute(text("SELECT 1 FROM tandem_jobs WHERE id = 'a' FOR UPDATE"))
        async with asyncio.timeout(5):
            assert (await asyncio.create_task(db.isolated(Ledger().prune, HOUR, 10)))[0] == 2
    assert await left() == {"a"}


async def test_a_batch_that_hits_the_statement_timeout_is_made_smaller(
    database_url: str, postgres: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on fewer rows are deleted at once, until all are gone."""
    monkeypatch.setattr(pruner, "_BATCH", 20)
    monkeypatch.setattr(pruner, "_LONGEST_REST", 0.0)
    database = db.Database(database_url, default=True, statement_timeout=0.5)
    await ended(database, State.DONE, 2 * HOUR, *(str(number) for number in range(20)))
    await postgres.execute(
        "CREATE FUNCTION be_large() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(0.1); RETURN OLD; END';"
        "CREATE TRIGGER large BEFORE DELETE ON tandem_jobs FOR EACH ROW EXECUTE FUNCTION be_large()"
    )
    one = Pruner(Ledger(), 3600.0)
    running = asyncio.create_task(one.run())
    await eventually(left, equals=set())
    assert one._batch == 2
    running.cancel()
    await asyncio.wait({running})
    await database.dispose()
    db.set_default_database(None)


async def test_each_batch_begins_where_the_one_before_it_ended(database: db.Database[Any]) -> None:
    """So it does not read past what was deleted. Rows of the same millisecond are not left out."""
    await ended(database, State.DONE, 3 * HOUR, "old")
    await ended(database, State.DONE, 2 * HOUR, *"abc")
    async with db.scope():
        await (await db.session()).execute(text("UPDATE tandem_jobs SET finished_at = 5000 WHERE id <> 'old'"))
    assert await Ledger().prune(HOUR, 2) == (2, 5000)
    assert (await Ledger().prune(HOUR, 2, 5001))[0] == 1
    assert len(await left()) == 1
    assert (await Ledger().prune(HOUR, 2, 5000)) == (1, 5000)
    assert await Ledger().prune(HOUR, 2, 5000) == (0, 5000)


async def test_a_pruner_rests_in_proportion_to_what_a_batch_takes(
    postgres_database: db.Database[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So a worker that is alone deletes more rows a second than it can add, on a fast database."""
    rests: list[float] = []
    monkeypatch.setattr(pruner, "_BATCH", 1)
    rest = asyncio.sleep

    async def noted(seconds: float) -> None:
        rests.append(seconds)
        await rest(0)

    monkeypatch.setattr("worker.engine.pruner.asyncio.sleep", noted)
    await ended(postgres_database, State.DONE, 2 * HOUR, "a", "b", "c")
    await Pruner(Ledger(), 3600.0)._prune()
    assert len(rests) == 3
    assert all(0 < seconds <= 0.2 for seconds in rests)
    assert await left() == set()


@pytest.mark.parametrize("over", [0, 20_000])
@pytest.mark.usefixtures("postgres_database")
async def test_pruning_finds_its_rows_by_an_index(postgres: Observer, over: int) -> None:
    """Whether few or many rows are old, the table is not read through."""
    await postgres.execute(
        "INSERT INTO tandem_jobs (id, enqueued_at, task, queue, state, finished_at)"
        " SELECT md5(g::text), g, 'send', 'mail', CASE WHEN g % 100 = 0 THEN 'failed' ELSE 'done' END,"
        f" {_NOW['postgresql']} - CASE WHEN g <= {over} THEN {2 * HOUR} ELSE 0 END FROM generate_series(1, 50000) g"
    )
    await postgres.execute("ANALYZE tandem_jobs")
    dialect = make_url("postgresql+asyncpg://").get_dialect()()
    statement: Any = Statements.of("postgresql", "tandem_jobs").prune
    query = statement.compile(dialect=dialect)
    values = query.construct_params({"keep": HOUR, "limit": 1000, "after": 0})
    plan = await postgres.fetch(f"EXPLAIN {query}", *(values[name] for name in query.positiontup))
    text_of_plan = "\n".join(row[0] for row in plan)
    assert "tandem_jobs_prune" in text_of_plan
    assert "Seq Scan" not in text_of_plan
    assert (await Ledger().prune(HOUR, 1000))[0] == min(over, 1000)

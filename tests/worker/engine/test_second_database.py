"""A second `Database` with the URL of the default one, as for a replica where a program is developed."""

from typing import Any

import pytest
from sqlalchemy import text

import db
from tests.servers import Observer
from tests.worker.conftest import Count, Execute
from worker import Broker, task
from worker.engine.outcome import OutcomeKind

_READ_ONLY = {"connect_args": {"server_settings": {"default_transaction_read_only": "on"}}}


@pytest.fixture
async def replica(database: db.Database[Any]) -> Any:
    """The default database once more, for reading."""
    assert database.url is not None
    replica: db.Database[Any] = db.Database(database.url, name="replica", engine_options=_READ_ONLY)
    yield replica
    await replica.dispose()


async def write_and_read(replica: db.Database[Any]) -> None:
    """Write in the default database, then read in the other one."""
    await (await db.session()).execute(text("INSERT INTO note (words) VALUES ('a')"))
    await (await db.session(replica)).execute(text("SELECT 1"))


async def test_a_tasks_row_is_in_the_transaction_of_its_effects(
    replica: db.Database[Any], execute: Execute, rows: Count, postgres: Observer
) -> None:
    """The transaction that only reads gets no job row, although it began last."""

    @task
    async def copy(session: db.AsyncSession) -> None:
        await write_and_read(replica)

    assert (await execute(copy)).kind is OutcomeKind.COMPLETED
    assert await rows() == 1
    assert await postgres.fetchval("SELECT state FROM tandem_jobs") == "done"


async def test_an_enqueued_job_is_in_the_transaction_of_the_request(
    replica: db.Database[Any], broker: Broker, rows: Count, postgres: Observer
) -> None:
    """With an id of its own, and with a random one."""

    @task
    async def nothing() -> None: ...

    async with db.scope():
        await write_and_read(replica)
        await nothing.using(job_id="named").enqueue()
        await nothing.enqueue()
    assert await rows() == 1
    assert await postgres.fetchval("SELECT count(*) FROM tandem_jobs WHERE state = 'pending'") == 2


async def test_the_default_database_is_committed_last(replica: db.Database[Any]) -> None:
    """Whichever was used first."""
    order: list[str] = []
    async with db.scope():
        await db.session()
        await db.session(replica)
        db.on_commit(lambda: order.append("default"))
        db.on_commit(lambda: order.append("replica"), database=replica)
        for database in (None, replica):
            await (await db.session(database) if database else await db.session()).execute(text("SELECT 1"))
    assert order == ["replica", "default"]

"""A job writes little WAL on a large table, as its id begins with its time.

`TANDEM_ROWS=10000000` fills so many done rows. By default they are so few that filling takes seconds, and so many that
random ids would miss the limit. Run it with `-s` to see the figures.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from secrets import token_hex

import asyncpg
import pytest
from sqlalchemy import make_url

import db
from tests.servers import Observer, as_dsn, migrate
from tests.waiting import eventually
from worker.broker.records import now_ms
from worker.embedded import EmbeddedPostgres
from worker.job_ids import new_job_id
from worker.ledger import FinalRow, Ledger, State
from worker.new_job import NewJob

ROWS = int(os.environ.get("TANDEM_ROWS", "200000"))
JOBS = 2_000
LIMIT = 2_000  # bytes of WAL a job
_WAVE = 20  # jobs at once
_PAYLOAD = b'{"f":"send","k":{"number":1},"et":1764590000000,"l":1}'
_WEEK = 7 * 86_400_000  # milliseconds
_FILL = """
    INSERT INTO tandem_jobs (id, enqueued_at, task, queue, state, due, result, tries, started_at, finished_at)
    SELECT CASE WHEN $1 THEN md5(g::text) ELSE lpad(to_hex(ms), 12, '0') || '7' || left(md5(g::text), 19) END,
           ms, 'send', 'arq:queue', 'done', ms, 'null', 1, ms, ms
    FROM (SELECT g, $2::bigint + g * $3::bigint / $4 AS ms FROM generate_series(1, $4::bigint) g) AS moments
"""


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A server that writes whole pages to the WAL after a checkpoint, as in production."""
    options = {"full_page_writes": "on", "max_wal_size": "8GB", "checkpoint_timeout": "1h", "autovacuum": "off"}
    with EmbeddedPostgres(options=options) as one:
        yield one


@pytest.fixture
async def observer(server: EmbeddedPostgres) -> AsyncIterator[Observer]:
    """Looks at a database with an empty ledger, which is the default one."""
    connection = await asyncpg.connect(as_dsn(make_url(server.url)))
    await connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    migrate(make_url(server.url))
    database: db.Database[db.AsyncSession] = db.Database(server.url, default=True)
    yield Observer(connection)
    await database.dispose()
    db.set_default_database(None)
    await connection.close()


async def run_job(job_id: str) -> None:
    """Enqueue a job in a transaction, and set it done in another one."""
    ledger, moment = Ledger(), now_ms()
    async with db.scope():
        await ledger.add(await db.session(), [NewJob(job_id, _PAYLOAD, "send", "arq:queue", moment)])
    async with db.scope():
        done = FinalRow(job_id, moment, "send", "arq:queue", State.DONE, result=b"null", started_at=moment)
        assert await ledger.mark_done(await db.session(), done) is None


def random_id() -> str:
    return token_hex(16)


@pytest.mark.parametrize(("new_id", "is_small"), [(new_job_id, True), (random_id, False)])
async def test_a_job_on_a_large_table_writes_little_wal_after_a_checkpoint(
    observer: Observer, new_id: Callable[[], str], *, is_small: bool
) -> None:
    """With random ids it writes a whole page of the primary key's index, mostly."""
    await observer.execute(_FILL, not is_small, now_ms() - _WEEK, _WEEK, ROWS)
    await observer.execute("VACUUM tandem_jobs")
    await observer.execute("CHECKPOINT")
    before = await observer.fetchval("SELECT pg_current_wal_insert_lsn()")
    for _ in range(0, JOBS, _WAVE):
        await asyncio.gather(*(run_job(new_id()) for _ in range(_WAVE)))
    written = await observer.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1)", before)
    a_job = round(written / JOBS)
    print(f"{new_id.__name__}: {a_job:,} bytes of WAL a job on a table of {ROWS:,} rows")  # noqa: T201 - the figures of the docs
    assert (a_job <= LIMIT) == is_small


async def test_no_update_of_a_pending_row_is_hot(observer: Observer) -> None:
    """A row that is set done leaves the indexes of pending rows, so PostgreSQL writes to every index that it is in."""
    for _ in range(_WAVE):
        await run_job(new_job_id())
    await db.default_database().dispose()  # a backend reports its counts when it ends

    async def updates() -> tuple[int, int]:
        counts = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'tandem_jobs'"
        return tuple((await observer.fetch(counts))[0])

    await eventually(updates, equals=(_WAVE, 0))

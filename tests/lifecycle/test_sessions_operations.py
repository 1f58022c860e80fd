"""F: PostgreSQL as it is run: restarted, demoted, full, changed under us, behind a pooler."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import make_url, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import db
from db.transient import Transient, transient
from tests.conftest import StartPostgres
from tests.pooler import Pooler
from tests.proxy import Proxy, When
from tests.servers import Observer, as_dsn, as_url
from tests.waiting import eventually

INSERT = text("INSERT INTO note (words) VALUES (:words)")
CREATE = "CREATE TABLE note (id serial PRIMARY KEY, words text)"


class Base(DeclarativeBase):
    pass


class Note(Base):
    __tablename__ = "note"

    id: Mapped[int] = mapped_column(primary_key=True)
    words: Mapped[str]


async def insert(words: str = "a") -> None:
    session: Any = await db.session()
    if isinstance(session, db.Session):
        await asyncio.to_thread(session.execute, INSERT, {"words": words})
    else:
        await session.execute(INSERT, {"words": words})


async def select_one() -> None:
    async with db.scope():
        await _run(await db.session(), "SELECT 1")


async def count(url: str) -> int:
    connection = await asyncpg.connect(as_dsn(make_url(url)))
    try:
        return int(await connection.fetchval("SELECT count(*) FROM note"))
    finally:
        await connection.close()


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(as_dsn(make_url(url)))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def default(url: str, **options: Any) -> AsyncIterator[db.Database[Any]]:
    database: db.Database[Any] = db.Database(url, default=True, **options)
    try:
        yield database
    finally:
        db.set_default_database(None)
        await database.dispose()


@pytest.fixture(params=["asyncpg", "psycopg"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("turns", range(6))
async def test_pre_ping_replaces_a_connection_whose_backend_was_terminated(
    database_url: str, postgres: Observer, sync_database_url: str, turns: int
) -> None:
    """Between a terminated backend's last words and the end of its connection, a scope with `pre_ping` gets another
    one, and without it the error says that the connection is lost."""
    end_all = "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity WHERE application_name = 'told'"
    for pre_ping in (True, False):
        options = {"connect_args": {"server_settings": {"application_name": "told"}}}
        async with default(database_url, pool_size=1, pre_ping=pre_ping, engine_options=options):
            await select_one()
            with psycopg.connect(as_dsn(make_url(sync_database_url)), autocommit=True) as administrator:
                administrator.execute(end_all)  # not a word of it is read before the next turn of this loop
            for _ in range(turns):
                await asyncio.sleep(0)
            (error,) = await asyncio.gather(select_one(), return_exceptions=True)
            assert error is None or (not pre_ping and transient(error) is Transient.LOST), error


async def test_a_pool_with_pre_ping_survives_a_restart_of_the_server(own_postgres: StartPostgres, driver: str) -> None:
    """With `pre_ping` a pool whose connections have all gone stale in a restart fails no scope."""
    server = own_postgres()
    await execute(server.url, CREATE)
    async with default(as_url(make_url(server.url), driver), pool_size=5):
        barrier = asyncio.Barrier(5)

        async def together() -> None:
            await insert()
            await barrier.wait()

        await asyncio.gather(*(db.isolated(together) for _ in range(5)))
        for kill in (False, True):
            if kill:
                server.kill()
            server.restart()
            await asyncio.gather(*(db.isolated(together) for _ in range(5)))
    assert await count(server.url) == 15


async def test_a_stale_connection_without_pre_ping_is_a_transient_error(
    own_postgres: StartPostgres, driver: str
) -> None:
    """Without it the first use is worth another try, which works: one stale connection empties the pool."""
    server = own_postgres()
    await execute(server.url, CREATE)
    async with default(as_url(make_url(server.url), driver), pool_size=3, pre_ping=False):
        barrier = asyncio.Barrier(3)

        async def together() -> None:
            await insert()
            await barrier.wait()

        await asyncio.gather(*(db.isolated(together) for _ in range(3)))
        server.restart()
        with pytest.raises((DBAPIError, db.DbError)) as lost:
            await db.isolated(insert)
        assert transient(lost.value) is Transient.LOST
        for _ in range(3):
            await db.isolated(insert)
    assert await count(server.url) == 6


async def test_a_server_that_is_down_or_starting_is_a_transient_error(own_postgres: StartPostgres, driver: str) -> None:
    """While the server is down, and while it starts, every try says so and is worth another one; then it works."""
    server = own_postgres()
    await execute(server.url, CREATE)
    async with default(as_url(make_url(server.url), driver)):
        await db.isolated(insert)
        server.kill()
        for _ in range(3):
            with pytest.raises(db.DatabaseUnreachableError) as lost:
                await db.isolated(insert)
            assert transient(lost.value) is Transient.LOST

        reasons = set()

        async def try_until_it_works() -> None:
            while True:
                try:
                    await db.isolated(insert)
                except (DBAPIError, db.DbError) as error:
                    reasons.add(transient(error))
                    await asyncio.sleep(0.001)
                else:
                    return

        trying = asyncio.create_task(try_until_it_works())
        await asyncio.to_thread(server.restart)
        await asyncio.wait_for(trying, 10)
        assert reasons == {Transient.LOST}
    assert await count(server.url) == 2


async def test_a_server_that_dies_in_a_transaction_is_a_lost_connection(
    own_postgres: StartPostgres, driver: str
) -> None:
    """A server that dies in the middle of a transaction is a lost connection; nothing of it is saved."""
    server = own_postgres()
    await execute(server.url, CREATE)
    async with default(as_url(make_url(server.url), driver)):
        with pytest.raises((DBAPIError, db.DbError)) as lost:
            async with db.scope():
                await insert()
                server.kill()
                await insert()
        assert transient(lost.value) is Transient.LOST
        server.restart()
        await db.isolated(insert)
    assert await count(server.url) == 1


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_connection_lost_in_the_commit_is_reported_as_lost(
    database_url: str, postgres: Observer, when: When, driver: str
) -> None:
    """A connection that is lost in the COMMIT is reported as lost, whether or not it has committed."""
    await postgres.execute(CREATE)
    async with Proxy(database_url) as proxy, default(as_url(make_url(proxy.url), driver)):
        proxy.drop_on("^COMMIT", when=when)
        with pytest.raises((DBAPIError, db.DbError)) as lost:
            await db.isolated(insert)
        assert transient(lost.value) is Transient.LOST
        await eventually(postgres.backends, equals=0)
        assert await postgres.fetchval("SELECT count(*) FROM note") == (when == "after")


async def test_a_server_out_of_connections_is_a_transient_error(own_postgres: StartPostgres, driver: str) -> None:
    """SQLSTATE 53300."""
    server = own_postgres(max_connections=4, superuser_reserved_connections=0, reserved_connections=0)
    await execute(server.url, CREATE)
    async with default(as_url(make_url(server.url), driver)):
        takers = [await asyncpg.connect(as_dsn(make_url(server.url))) for _ in range(4)]
        with pytest.raises((DBAPIError, db.DbError)) as full:
            await db.isolated(insert)
        assert transient(full.value) is Transient.LOST
        await takers.pop().close()

        async def work() -> bool:
            with contextlib.suppress(DBAPIError, db.DbError):
                await db.isolated(insert)
                return True
            return False

        await eventually(work)
        for taker in takers:
            await taker.close()
    assert await count(server.url) == 1


async def test_an_unknown_database_or_user_is_no_transient_error(own_postgres: StartPostgres, driver: str) -> None:
    """The error has the server's own message."""
    server = own_postgres()
    for wrong in ({"database": "nobodys"}, {"username": "nobody"}):
        url = make_url(as_url(make_url(server.url), driver)).set(**wrong)  # type: ignore[arg-type]
        async with default(url.render_as_string(hide_password=False)):
            with pytest.raises(DBAPIError, match="does not exist") as refused:
                await db.isolated(insert)
            assert transient(refused.value) is None


async def test_each_pooled_connection_to_a_demoted_server_fails_at_most_once(
    own_postgres: StartPostgres, driver: str
) -> None:
    """SQLSTATE 25006: a demoted server has an error of its own."""
    server = own_postgres()
    await execute(server.url, CREATE)
    async with default(as_url(make_url(server.url), driver), pool_size=3):
        barrier = asyncio.Barrier(3)

        async def together() -> None:
            await insert()
            await barrier.wait()

        await asyncio.gather(*(db.isolated(together) for _ in range(3)))
        await execute(server.url, "ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()")

        async def why() -> Transient | None:
            try:
                await db.isolated(insert)
            except DBAPIError as error:
                return transient(error)
            return None

        await eventually(why, equals=Transient.READ_ONLY)
        await execute(
            server.url,
            "SET default_transaction_read_only = off",
            "ALTER SYSTEM SET default_transaction_read_only = off",
            "SELECT pg_reload_conf()",
        )
        before = await count(server.url)
        # The connections that were open meanwhile are gone: one error has emptied the pool.
        await asyncio.sleep(0.2)
        for _ in range(3):
            await db.isolated(insert)
        assert await count(server.url) == before + 3


async def test_a_connection_to_a_read_only_server_is_not_used_again(
    database_url: str, postgres: Observer, driver: str
) -> None:
    """SQLSTATE 25006: the next connection may reach the new primary."""
    await postgres.execute(CREATE)
    async with default(as_url(make_url(database_url), driver)):
        name = make_url(database_url).database
        await postgres.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await select_one()
        await postgres.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        with pytest.raises(DBAPIError) as refused:
            await db.isolated(insert)
        assert transient(refused.value) is Transient.READ_ONLY
        await db.isolated(insert)
    assert await postgres.fetchval("SELECT count(*) FROM note") == 1


async def _run(session: Any, statement: str) -> None:
    if isinstance(session, db.Session):
        await asyncio.to_thread(session.execute, text(statement))
    else:
        await session.execute(text(statement))


async def test_a_read_only_transaction_keeps_its_connection(database_url: str, postgres: Observer, driver: str) -> None:
    """SQLSTATE 25006 in a transaction that the session itself made read-only is another error."""
    await postgres.execute(CREATE)
    async with default(as_url(make_url(database_url), driver), pool_size=1):
        await select_one()
        before = await postgres.backends()
        for wish in ("SET TRANSACTION READ ONLY", "option"):
            with pytest.raises(DBAPIError) as refused:
                async with db.scope():
                    session: Any = await db.session()
                    if wish != "option":
                        await _run(session, wish)
                    elif isinstance(session, db.Session):
                        options = {"postgresql_readonly": True}
                        await asyncio.to_thread(session.connection, execution_options=options)
                    else:
                        await session.connection(execution_options={"postgresql_readonly": True})
                    await insert()
            assert transient(refused.value) is None
            assert await postgres.backends() == before
        await db.isolated(insert)


async def test_a_session_that_the_server_ended_for_idling_says_so(
    database_url: str, postgres: Observer, driver: str
) -> None:
    """SQLSTATE 25P03, with each driver."""
    async with default(as_url(make_url(database_url), driver), idle_in_transaction_timeout=0.1):
        await select_one()
        with pytest.raises(db.ConnectionEndedError) as ended:
            async with db.scope():
                session: Any = await db.session()
                await _run(session, "SELECT 1")
                await eventually(postgres.backends, equals=0)
                await _run(session, "SELECT 1")
        assert transient(ended.value) is Transient.ENDED
        await select_one()


async def test_a_cached_plan_of_a_changed_table_is_a_transient_error(database_url: str, postgres: Observer) -> None:
    """A statement whose plan was cached before the table changed is worth another try, which works."""
    await postgres.execute(CREATE)

    async def read() -> list[Any]:
        return list((await (await db.session()).execute(text("SELECT * FROM note"))).all())

    async with default(database_url, pool_size=1):
        await db.isolated(read)
        await postgres.execute("ALTER TABLE note ALTER id TYPE bigint")
        with pytest.raises(DBAPIError, match="cached statement plan is invalid") as stale:
            await db.isolated(read)
        assert transient(stale.value) is Transient.STALE_PLAN
        assert await db.isolated(read) == []


async def test_sessions_share_one_backend_behind_a_pooler(database_url: str, postgres: Observer, driver: str) -> None:
    """`pooler=True`: sessions that take turns on one backend do not collide with statement names."""
    await postgres.execute(CREATE)
    async with (
        Pooler(database_url, size=1) as pooler,
        default(as_url(make_url(pooler.url), driver), pooler=True, pool_size=4),
    ):

        async def work(number: int) -> int:
            session: Any = await db.session()
            if isinstance(session, db.Session):
                session.add(Note(words=str(number)))
                await asyncio.to_thread(session.flush)
                return len((await asyncio.to_thread(session.scalars, select(Note))).all())
            session.add(Note(words=str(number)))
            await session.flush()
            return len((await session.scalars(select(Note))).all())

        for _ in range(3):
            seen = await asyncio.gather(*(db.isolated(work, number) for number in range(4)))
            assert len(set(seen)) == 4
        with pytest.raises(ZeroDivisionError):
            async with db.scope():
                await work(99)
                raise ZeroDivisionError
    assert await postgres.fetchval("SELECT count(*) FROM note") == 12


async def test_a_pooler_that_refuses_settings_names_the_option_to_set(database_url: str, driver: str) -> None:
    """Without `pooler=True` such a pooler refuses the connection because of the settings: the error says what to do."""
    async with Pooler(database_url, size=1) as pooler, default(as_url(make_url(pooler.url), driver)) as database:
        with pytest.raises(db.DatabaseURLError, match=r"PgBouncer .*unsupported startup parameter.*pooler=True"):
            await database.check()


async def test_a_statement_lost_by_a_pooler_names_the_option_to_set(database_url: str) -> None:
    """A pooler that ignores the settings lends connections which do not know our statements: the same advice."""
    async with default(database_url, pool_size=1):
        for _ in range(2):
            await db.isolated(answer)
        with pytest.raises(db.DatabaseURLError, match=r"PgBouncer .*prepared statement .*does not exist.*pooler=True"):
            async with db.scope():
                await (await db.session()).execute(text("DEALLOCATE ALL"))  # what the pooler's other clients have
                await answer()


async def answer() -> Any:
    return await (await db.session()).scalar(text("SELECT 7"))


async def test_a_statement_past_its_timeout_is_ended_by_the_server(database_url: str, postgres: Observer) -> None:
    """A statement that takes longer than the limit is ended by the server, in its own words, and is final."""
    async with default(database_url, statement_timeout=0.1):
        with pytest.raises(DBAPIError, match="statement timeout") as slow:
            async with db.scope():
                await (await db.session()).execute(text("SELECT pg_sleep(30)"))
        assert transient(slow.value) is None
    assert await postgres.idle_in_transaction() == 0


async def test_a_transaction_past_its_idle_timeout_is_a_lost_connection(database_url: str, postgres: Observer) -> None:
    """A transaction that sits idle longer than its limit is ended by the server: a lost connection for the scope."""
    await postgres.execute(CREATE)
    async with default(database_url, idle_in_transaction_timeout=0.1):
        with pytest.raises((DBAPIError, db.DbError)) as lost:
            async with db.scope():
                await insert()
                await eventually(postgres.backends, equals=0)
        assert transient(lost.value) is Transient.LOST
    assert await postgres.fetchval("SELECT count(*) FROM note") == 0


async def test_a_deadlock_is_a_transient_error(database_url: str, postgres: Observer) -> None:
    """SQLSTATE 40P01: one of the two transactions is rolled back. After its retry both have written."""
    await postgres.execute(CREATE)
    await postgres.execute("INSERT INTO note (words) VALUES ('one'), ('two')")
    both = asyncio.Barrier(2)

    async def update(first: int, second: int) -> None:
        session = await db.session()
        await session.execute(text("UPDATE note SET words = words || '!' WHERE id = :id"), {"id": first})
        with contextlib.suppress(asyncio.BrokenBarrierError):
            await both.wait()
        await session.execute(text("UPDATE note SET words = words || '!' WHERE id = :id"), {"id": second})

    async with default(database_url):
        results = await asyncio.gather(db.isolated(update, 1, 2), db.isolated(update, 2, 1), return_exceptions=True)
        errors = [error for error in results if isinstance(error, BaseException)]
        assert [transient(error) for error in errors] == [Transient.CONFLICT]
        await both.abort()
        await db.isolated(update, 1, 2)
    assert await postgres.fetchval("SELECT string_agg(words, ' ' ORDER BY id) FROM note") == "one!! two!!"


def test_an_exception_group_is_transient_if_each_of_its_errors_is() -> None:
    """An exception group is worth another try only if each of its errors is."""
    lost, final = db.DatabaseUnreachableError(), ValueError()
    assert transient(ExceptionGroup("", [lost, ExceptionGroup("", [lost])])) is Transient.LOST
    assert transient(ExceptionGroup("", [lost, final])) is None
    assert transient(final) is None

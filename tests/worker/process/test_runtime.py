"""How a worker opens: in which order, when it refuses to start, and that it closes what it opened."""

import asyncio
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Annotated, Any

import pytest
import redis
from sqlalchemy import make_url

import db
import worker
from db.database import given_default
from tests.conftest import StartPostgres
from tests.servers import Observer
from tests.waiting import at_once, eventually
from tests.worker.new_jobs import new_job
from tests.worker.reports import report
from worker import Resource, Task, task
from worker.broker.broker import given_default_broker
from worker.broker.records import now_ms
from worker.config import Config
from worker.errors import ConfigError
from worker.ledger.default import default_ledger
from worker.message import encode
from worker.process.errors import StartupError
from worker.process.runtime import Runtime, require_urls
from worker.process.served import warn_of_unserved
from worker.registry import Lifespan, Registry


@task
async def plain() -> None: ...


@task
async def with_session(session: db.AsyncSession) -> None: ...


@task
async def with_resource(http: Annotated[str, Resource("http")]) -> None: ...


@task
def in_thread(session: db.Session) -> None: ...


def registry(*tasks: Task[..., Any], lifespan: Lifespan | None = None) -> Registry:
    return Registry("tasks.registry", "tasks/registry.py", MappingProxyType({one.name: one for one in tasks}), lifespan)


@pytest.fixture
def config(redis_url: str, database_url: str) -> Config:
    return Config.load(database_url=database_url, redis_url=redis_url, concurrency=4, connect_wait=20)


def changed(config: Config, **update: Any) -> Config:
    return Config.load(**(config.model_dump() | update))


async def refused(config: Config, tasks: Registry) -> str:
    """Return why a worker does not start; assert that nothing stays open."""
    with pytest.raises(StartupError) as caught:
        await Runtime(config, tasks).open({})
    assert given_default_broker() is None
    assert "\n" not in str(caught.value)
    return str(caught.value)


class TestOpen:
    async def test_the_database_is_opened_with_limits_that_fit_the_tasks(self, config: Config) -> None:
        """The longest timeout is the statements' limit, and an idle transaction may last 30 s longer."""
        slow: Task[..., Any] = task(timeout=1000, name="slow")(plain.fn)
        runtime = Runtime(changed(config, job_timeout=50), registry(plain, slow))
        await runtime.open({})
        async with db.scope():
            session = await db.session()
            connection = await session.connection()
            for setting, value in (
                ("statement_timeout", "1000s"),
                ("idle_in_transaction_session_timeout", "1030s"),
            ):
                shown = (await connection.exec_driver_sql(f"SHOW {setting}")).scalar_one()
                assert seconds(shown) == float(value[:-1])
        assert db.default_database().pool_size == 7
        await runtime.close()

    async def test_close_leaves_no_connection_and_no_default(
        self, config: Config, postgres: Observer, observer: redis.Redis
    ) -> None:
        """After `close` there is no backend, no connection to Redis, and no default database or queue."""
        before = len(clients(observer))
        runtime = Runtime(config, registry(with_session))
        await runtime.open({})
        await worker.default_broker().ping()
        assert await postgres.backends() >= 1
        ledger = default_ledger()
        await runtime.close()
        await eventually(postgres.backends, equals=0)
        await eventually(lambda: len(clients(observer)), equals=before)
        assert (given_default(), given_default_broker()) == (None, None)
        assert default_ledger() is not ledger

    async def test_a_projects_own_database_and_queue_stay_the_defaults(
        self, config: Config, database_url: str, redis_url: str
    ) -> None:
        """A database or queue that the project has made the default is used, whatever the URLs say."""
        theirs = db.Database(database_url, default=True, pool_size=20)
        broker = worker.Broker(redis_url, name="theirs", default=True)
        runtime = Runtime(changed(config, database_url="postgresql://nobody@127.0.0.1:1/none"), registry(with_session))
        await runtime.open({})
        assert db.default_database() is theirs
        assert worker.default_broker() is broker
        await runtime.close()
        assert given_default() is theirs


class TestQueue:
    async def test_tasks_do_not_keep_the_engine_waiting_for_a_connection(
        self, config: Config, redis_url: str, observer: Any
    ) -> None:
        """While a task has taken every connection of the default queue, other jobs run, and the worker is well."""

        @task(name="hog")
        async def hog() -> None:
            redis = worker.default_broker().redis
            taken = asyncio.create_task(redis.execute_command("BLPOP", "let go", 60))
            waiting = [asyncio.create_task(plain.enqueue()) for _ in range(100)]
            await asyncio.gather(taken, *waiting)

        url = f"{redis_url}{'&' if '?' in redis_url else '?'}max_connections=1&timeout=60&socket_timeout=60"
        runtime = Runtime(changed(config, redis_url=url, id="w", log_jobs="off"), registry(hog, plain))
        engine = await runtime.open({})
        engine.start()
        broker = worker.Broker(redis_url)
        try:
            hogging = worker.Job[None](await enqueued(broker, hog), broker=broker)
            await eventually(lambda: observer.info("clients")["blocked_clients"] == 1)
            other = worker.Job[None](await enqueued(broker, plain), broker=broker)
            await asyncio.wait_for(other.result(), 10)
            observer.delete("arq:queue:health-check:w")
            await eventually(lambda: observer.exists("arq:queue:health-check:w"), timeout=10)
            assert await hogging.status() == "in_progress"
            observer.rpush("let go", "x")
            await hogging.result(timeout=20)
        finally:
            await engine.drain()
            await runtime.close()
            await broker.close()


async def enqueued(broker: worker.Broker, wanted: Task[..., Any]) -> str:
    """Enqueue a job through this queue and return its id."""
    await broker.enqueue([new_job(wanted.name, encode(wanted.name, b"{}", now_ms()), broker.name)])
    return wanted.name


@task(queue="mail")
async def elsewhere() -> None: ...


class TestQueues:
    @pytest.fixture(autouse=True)
    def _others_have_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("worker.process.served._STARTING", 0.01)

    async def test_a_queue_that_no_worker_serves_is_logged_with_its_tasks(
        self, config: Config, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The warning names the tasks whose jobs would wait there."""
        runtime = Runtime(config, registry(plain, elsewhere))
        await runtime.open({})
        await eventually(lambda: "the jobs of elsewhere go to the queue mail, which no worker serves" in caplog.text)
        await runtime.close()

    async def test_a_queue_that_another_worker_serves_is_not_logged(
        self, config: Config, broker: worker.Broker, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Other workers are known by their reports in Redis."""
        await report(broker, "another", ["mail"])
        await warn_of_unserved([plain, elsewhere], config, broker)
        assert "mail" not in caplog.text
        await warn_of_unserved([plain, elsewhere], changed(config, queues="a, b"), broker)
        assert "the jobs of plain go to the queue arq:queue, which no worker serves" in caplog.text
        assert "WORKER_QUEUES, which is a,b here" in caplog.text

    async def test_a_worker_that_ends_does_not_wait_for_the_check_of_its_queues(
        self, config: Config, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The check only logs a warning, so the end of the worker cancels it."""
        monkeypatch.setattr("worker.process.served._STARTING", 60.0)
        runtime = Runtime(config, registry(elsewhere))
        await runtime.open({})
        await at_once(runtime.close())
        assert len(asyncio.all_tasks()) == 1


class TestLedger:
    async def test_a_missing_ledger_table_stops_the_start(self, config: Config, postgres: Observer) -> None:
        """Without the table no jobs are run; the line names the command that creates it."""
        await postgres.execute("DROP TABLE tandem_jobs")
        why = await refused(config, registry(plain))
        assert why == "the ledger's table tandem_jobs is missing: run 'python -m worker migrate'"

    async def test_the_ledger_is_looked_for_under_the_name_of_the_setting(self, config: Config) -> None:
        """`WORKER_LEDGER` names the table and its schema."""
        why = await refused(changed(config, ledger="work.jobs"), registry(plain))
        assert why == "the ledger's table work.jobs is missing: run 'python -m worker migrate'"

    async def test_jobs_are_written_to_the_ledger_that_the_setting_names(
        self, config: Config, postgres: Observer
    ) -> None:
        """Code that enqueues in the worker's process writes to the same table."""
        for table in ("", "_pauses", "_audit"):
            await postgres.execute(f"ALTER TABLE tandem_jobs{table} RENAME TO mine{table}")
        runtime = Runtime(changed(config, ledger="mine"), registry(plain))
        await runtime.open({})
        async with db.scope():
            await plain.using(delay=60).enqueue()
        assert await postgres.fetchval("SELECT count(*) FROM mine") == 1
        await runtime.close()


class TestHooks:
    async def test_resources_open_before_on_startup_and_close_after_on_shutdown(self, config: Config) -> None:
        """The database is open while resources and hooks start and stop."""
        events: list[str] = []

        async def note(event: str) -> None:
            async with db.scope():
                await (await db.session()).connection()
            events.append(event)

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[dict[str, str]]:
            await note("resources open")
            yield {"http": "client"}
            await note("resources close")

        async def startup(ctx: dict[Any, Any]) -> None:
            await note(f"startup {ctx}")

        async def shutdown(ctx: dict[Any, Any]) -> None:
            await note(f"shutdown {ctx}")

        runtime = Runtime(config, registry(with_resource, lifespan=lifespan), on_startup=startup, on_shutdown=shutdown)
        await runtime.open({"a": 1})
        await runtime.close()
        assert events == ["resources open", "startup {'a': 1}", "shutdown {'a': 1}", "resources close"]

    async def test_a_hook_that_fails_closes_what_was_opened(self, config: Config, postgres: Observer) -> None:
        """The project's own exception is raised unchanged, and nothing stays open."""
        closed: list[str] = []

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[dict[str, str]]:
            yield {}
            closed.append("resources")

        async def startup(ctx: dict[Any, Any]) -> None:
            raise LookupError("the project's")

        runtime = Runtime(config, registry(plain, lifespan=lifespan), on_startup=startup)
        with pytest.raises(LookupError, match="the project's"):
            await runtime.open({})
        assert closed == ["resources"]
        assert (given_default(), given_default_broker()) == (None, None)
        await eventually(postgres.backends, equals=0)


class TestRefused:
    async def test_a_resource_that_the_lifespan_does_not_yield_stops_the_start(
        self, config: Config, postgres: Observer
    ) -> None:
        """Resources are checked before the first job; the error names those that there are."""

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[dict[str, str]]:
            yield {"smtp": "client"}

        message = "with_resource: parameter http asks for the resource 'http', which LIFESPAN does not yield"
        assert await refused(config, registry(with_resource)) == f"{message} (it yields: nothing)"
        assert await refused(config, registry(with_resource, lifespan=lifespan)) == f"{message} (it yields: smtp)"
        await eventually(postgres.backends, equals=0)

    @pytest.mark.parametrize("resources", [None, "client", ["http"]])
    async def test_a_lifespan_that_yields_no_mapping_stops_the_start(self, config: Config, resources: Any) -> None:
        """The error for `yield client` says what to yield instead."""

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[Any]:
            yield resources

        assert "yield a dict of resources by name" in await refused(config, registry(plain, lifespan=lifespan))

    async def test_a_pool_smaller_than_the_number_of_jobs_is_an_error_or_a_warning(
        self, config: Config, caplog: pytest.LogCaptureFixture
    ) -> None:
        """It is an error if every task needs a session, and a warning if some do."""
        small = changed(config, concurrency=4, pool_size=3)
        message = await refused(small, registry(with_session))
        assert "4 jobs (WORKER_CONCURRENCY) and the health check share 3 database connections" in message
        assert "to 7 or more" in message
        runtime = Runtime(small, registry(with_session, plain))
        await runtime.open({})
        await runtime.close()
        assert message in caplog.text

    async def test_a_pool_without_a_spare_connection_is_a_warning(
        self, config: Config, caplog: pytest.LogCaptureFixture
    ) -> None:
        """If all jobs hold a connection for long, the health check gets none, and the worker seems to be dead."""
        runtime = Runtime(changed(config, concurrency=4, pool_size=4), registry(with_session))
        await runtime.open({})
        await runtime.close()
        assert "and the health check share 4 database connections" in caplog.text

    def test_a_queue_that_a_cluster_cannot_serve_is_a_wrong_setting(self, config: Config) -> None:
        """The line names the setting and a name for the queue that a cluster can serve."""
        cluster = changed(config, redis_url="redis+cluster://nobody.invalid", queues="{mail},low")
        with pytest.raises(ConfigError, match=re.escape("WORKER_QUEUES: a Redis Cluster") + ".*" + re.escape("{low}")):
            require_urls(cluster)
        assert require_urls(changed(cluster, queues="{mail}")).startswith("redis+cluster://")

    async def test_a_database_that_does_not_answer_stops_the_start_after_connect_wait(self, config: Config) -> None:
        """The line says how long it waited, why, and what to check; it does not show the password."""
        down = changed(config, database_url="postgresql://app:secret@127.0.0.1:1/app", connect_wait=0.3)
        message = await refused(down, registry(plain))
        assert message.startswith("DATABASE_URL: no answer within 0.3 s (")
        assert "is the server up?" in message
        assert "secret" not in message

    async def test_an_unknown_database_stops_the_start_at_once(self, config: Config, database_url: str) -> None:
        """An error that waiting cannot change is raised without waiting."""
        unknown = make_url(database_url).set(database="nowhere").render_as_string(hide_password=False)
        message = await refused(changed(config, database_url=unknown), registry(plain))
        assert message == 'DATABASE_URL: the server refuses: database "nowhere" does not exist'

    async def test_an_asynchronous_task_on_a_synchronous_driver_stops_the_start(
        self, config: Config, sync_database_url: str
    ) -> None:
        """A task that wants an AsyncSession cannot get one from psycopg."""
        message = await refused(changed(config, database_url=sync_database_url), registry(with_session))
        assert "with_session: parameter session is an AsyncSession, but DATABASE_URL names a synchronous" in message

    async def test_a_missing_driver_stops_the_start(self, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
        """The session of a plain function needs psycopg: the error comes before the first job."""
        monkeypatch.setitem(sys.modules, "psycopg", None)
        message = await refused(config, registry(in_thread))
        assert message.startswith("DATABASE_URL: the driver postgresql+psycopg cannot be imported")


async def test_a_server_that_comes_up_in_time_is_waited_for(own_postgres: StartPostgres, config: Config) -> None:
    """A worker that starts together with its database starts."""
    server = own_postgres()
    await asyncio.to_thread(server.kill)
    runtime = Runtime(changed(config, database_url=server.url), registry(with_session))
    opening = asyncio.create_task(runtime.open({}))
    await asyncio.sleep(0.5)
    assert not opening.done()
    await asyncio.to_thread(server.restart)
    await opening
    await runtime.close()


def clients(observer: redis.Redis) -> list[Any]:
    found: Any = observer.client_list()
    return list(found)


def seconds(shown: str) -> float:
    """A PostgreSQL duration as it is shown, in seconds."""
    units: dict[str, float] = {"ms": 0.001, "s": 1, "min": 60, "h": 3600}
    number = shown.rstrip("hmins")
    return float(number) * units[shown[len(number) :]]

"""Opening and closing a worker: the default database, the default broker, the resources, and the engine.

The lifespan's resources are entered after the database has answered, and left before the database closes.
"""

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import Any

import db
from db.database import given_default
from db.text.plural import plural
from worker.aio.cancel_tasks import cancel_tasks
from worker.broker.broker import Broker, given_default_broker, set_default_broker
from worker.broker.connections import Connections
from worker.broker.errors import RedisError
from worker.broker.unserved import serve
from worker.client.signature import InjectedSession
from worker.config import Config
from worker.context import Resource
from worker.engine.after_job import AfterJob
from worker.engine.arq_options import NO_ARQ_OPTIONS, ArqOptions
from worker.engine.engine import Engine
from worker.engine.executor import Executor
from worker.engine.limits import limits_of
from worker.engine.once import Once
from worker.engine.task_caller import Hook, TaskCaller, own_items
from worker.engine.traced_executor import make_executor
from worker.errors import ConfigError, LedgerError, WorkerError
from worker.ledger import Ledger
from worker.ledger.default import set_default_ledger
from worker.ledger.schema_check import check
from worker.process.errors import StartupError
from worker.process.logs import LogFormat
from worker.process.pickled_jobs import log_pickled_jobs
from worker.process.served import warn_of_unserved
from worker.process.server_wait import await_server
from worker.registry import Registry
from worker.task import Task

logger = logging.getLogger("worker")


class Runtime:
    """The open database, brokers and resources of one worker."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        *,
        on_startup: Hook | None = None,
        on_shutdown: Hook | None = None,
        on_job_start: Hook | None = None,
        on_job_end: Hook | None = None,
        after_job_end: Hook | None = None,
    ) -> None:
        self._config = config
        self._registry = registry
        self._on_startup = on_startup
        self._on_shutdown = on_shutdown
        self._hooks = {"on_job_start": on_job_start, "on_job_end": on_job_end}
        self._after_job_end = after_job_end
        self._arq = NO_ARQ_OPTIONS
        self._open = AsyncExitStack()
        self.executor: Executor
        """Executes the jobs. Set by `open`."""

    async def open(self, arq_context: dict[Any, Any]) -> Engine:
        """Connect, enter the resources, and make the engine. After an error, close what was opened.

        Raises:
            StartupError: the database does not answer within ``WORKER_CONNECT_WAIT``, or it holds no ledger, or its
                pool is too small for the jobs, or a task asks for a session that the database does not have or for a
                resource that the lifespan does not yield.
        """
        try:
            return await self._opened(arq_context)
        except BaseException:
            await self.close()
            raise

    async def _opened(self, arq_context: dict[Any, Any]) -> Engine:
        database = self._open_database()
        self._check_pool(database)
        await self._check_sessions(database)
        ledger_name = await self._check_ledger(database)
        broker = await self._open_broker()
        await log_pickled_jobs(self._config, broker)
        ledger = self._use_ledger(ledger_name)
        resources = await self._resources()
        await self._run_hooks(arq_context)
        _tell_of_own_items(arq_context, resources)
        self._warn_of_unserved(broker)
        caller = TaskCaller(threads=self._config.concurrency, arq_context=arq_context, **self._hooks)
        self._open.callback(caller.close)
        self.executor = executor = make_executor(
            caller,
            max_result=self._config.max_result,
            resources=resources,
            once=Once(ledger),
            retry_jobs=self._arq.retry_jobs,
        )
        engine = Engine(
            self._config,
            self._registry.tasks,
            broker,
            executor,
            ask_database=database.check,
            ledger=ledger,
            pool=lambda: database.pool_usage,
            arq=self._arq_options(arq_context),
        )
        self._serve_metrics(engine)
        return engine

    async def close(self) -> None:
        """Leave the resources, then close all connections."""
        await self._open.aclose()

    def fail_unknown_jobs_at_once(self) -> None:
        """Let a job of an unknown task fail when it is claimed, unless ``WORKER_UNKNOWN_FOR`` is set. Call it first."""
        if "unknown_for" not in self._config.model_fields_set:
            self._config = self._config.model_copy(update={"unknown_for": 0.0})

    def use_arq_options(self, options: ArqOptions) -> None:
        """Let the settings of arq's worker change what the engine does. Call it first."""
        self._arq = options

    def _arq_options(self, arq_context: dict[Any, Any]) -> ArqOptions:
        if self._after_job_end is None:
            return self._arq
        return replace(self._arq, after_job=AfterJob(self._after_job_end, arq_context))

    @property
    def log_format(self) -> LogFormat | None:
        """The format of log lines, if the settings name one."""
        return self._config.log

    @property
    def longest_timeout(self) -> float:
        """The longest timeout of all tasks, in seconds."""
        return max((limits.timeout for limits in limits_of(self._registry.tasks, self._config).values()), default=0.0)

    def _open_database(self) -> db.Database[Any]:
        """The default database: the project's own if it made one, else one with the limits that fit its tasks."""
        database = given_default()
        if database is None:
            url, _ = self._config.require_urls()
            database = db.Database(
                url,
                default=True,
                pool_size=self._config.pool_size,
                pre_ping=False,  # a job on a stale connection runs again, which is cheaper than a ping for each job
                statement_timeout=self.longest_timeout,
                idle_in_transaction_timeout=self.longest_timeout + 30.0,
            )
            self._open.callback(db.set_default_database, None)
        self._open.push_async_callback(database.dispose)
        return database

    async def _open_broker(self) -> Broker:
        """Open the engine's broker, and the default broker of tasks unless the project made its own.

        They are two, so that a task that enqueues thousands of jobs takes no connection from the engine.
        """
        serve(self._config.queue_names)
        broker, for_tasks = self._new_broker(), given_default_broker()
        self._open.push_async_callback(broker.close)
        if for_tasks is None:
            for_tasks = self._new_broker()
            set_default_broker(for_tasks)
            self._open.callback(set_default_broker, None)
        self._open.push_async_callback(for_tasks.close)
        with suppress(RedisError, OSError):  # the engine's loops wait for Redis, and log that they do
            await broker.connections.open()
        return broker

    def _serve_metrics(self, engine: Engine) -> None:
        """Serve the worker's metrics if ``WORKER_METRICS_PORT`` is set.

        Raises:
            StartupError: the port is in use, or the package prometheus-client is not installed.
        """
        if self._config.metrics_port is None:
            return
        try:
            from worker.metrics import prometheus  # noqa: PLC0415 - prometheus-client need not be installed
        except ModuleNotFoundError as error:
            raise StartupError(
                f"WORKER_METRICS_PORT needs the package prometheus-client ({error}): pip install 'tandem-jobs[metrics]'"
            ) from None
        collectors = [
            prometheus.WorkerCollector(engine.jobs.meter, engine.report.snapshot),
            prometheus.EnqueuedCollector(),
        ]
        try:
            self._open.callback(prometheus.serve(collectors, self._config.metrics_port))
        except ConfigError as error:
            raise StartupError(f"WORKER_METRICS_PORT: {error}") from None

    def _warn_of_unserved(self, broker: Broker) -> None:
        """Log, after a few seconds, the tasks whose queue no worker serves."""
        warning = asyncio.create_task(warn_of_unserved(self._registry.tasks.values(), self._config, broker))
        self._open.push_async_callback(cancel_tasks, [warning])

    def _new_broker(self) -> Broker:
        config = self._config
        return Broker(config.require_redis_url(), name=config.queue, max_payload=config.max_payload)

    def _use_ledger(self, name: str) -> Ledger:
        """Make the ledger, also the default one, so that jobs enqueue into the table that holds their own rows."""
        ledger = Ledger(name, keep_arguments=self._config.keep_arguments)
        set_default_ledger(ledger)
        self._open.callback(set_default_ledger, None)
        return ledger

    async def _run_hooks(self, arq_context: dict[Any, Any]) -> None:
        if self._on_startup is not None:
            await self._on_startup(arq_context)
        if self._on_shutdown is not None:
            self._open.push_async_callback(self._on_shutdown, arq_context)

    def _check_pool(self, database: db.Database[Any]) -> None:
        """Warn of a pool without a connection for each job and one for the health check.

        Without its own connection the health check would fail while jobs hold all others. A pool that is smaller than
        the concurrency is an error if every task takes a session, as jobs would then wait for each other.

        Raises:
            StartupError: every task takes a session, and the pool has fewer connections than jobs run at once.
        """
        wanted = self._config.concurrency
        if database.url is None or database.pool_size is None:  # an engine of a factory's, whose size is not known
            return
        if database.pool_size > wanted:
            return
        shortage = (
            f"{plural(wanted, 'job')} (WORKER_CONCURRENCY) and the health check share "
            f"{plural(database.pool_size, 'database connection')}: "
            f"set WORKER_POOL_SIZE (or the project's own Database(pool_size=...)) to {wanted + 3} or more, or lower "
            "WORKER_CONCURRENCY"
        )
        if database.pool_size < wanted and all(_takes_session(task) for task in self._registry.tasks.values()):
            raise StartupError(shortage)
        logger.warning(shortage)

    async def _check_sessions(self, database: db.Database[Any]) -> None:
        """Wait for the database to answer through each driver that tasks need."""
        await await_server("DATABASE_URL", database.check, self._config.connect_wait)
        askers = {
            asked.sync: f"{task.name}: parameter {name}"
            for task in self._registry.tasks.values()
            for name, asked in task.injected.items()
            if isinstance(asked, InjectedSession) and asked.database is None
        }
        if False in askers and not database.is_async:
            raise StartupError(
                f"{askers[False]} is an AsyncSession, but DATABASE_URL names a synchronous driver: "
                "use postgresql+asyncpg:// or sqlite+aiosqlite://"
            )
        if True in askers and database.is_async:

            async def ask_twin() -> None:
                await database.sync.check()

            await await_server("DATABASE_URL", ask_twin, self._config.connect_wait)

    async def _check_ledger(self, database: db.Database[Any]) -> str:
        """Check that the ledger's table exists and is up to date, as outcomes of jobs must be recorded there.

        Returns:
            The table's name, with its schema.

        Raises:
            StartupError: the database does not answer, or the table is missing or old.
        """
        name = self._config.ledger

        async def ask() -> None:
            nonlocal name
            try:
                name = await check(database, self._config.ledger)
            except LedgerError as error:
                raise StartupError(str(error)) from None

        await await_server("DATABASE_URL", ask, self._config.connect_wait)
        return name

    async def _resources(self) -> Mapping[str, Any]:
        lifespan = self._registry.lifespan
        resources = {} if lifespan is None else await self._open.enter_async_context(lifespan())
        if not isinstance(resources, Mapping):
            raise StartupError(f"LIFESPAN yields {resources!r}: yield a dict of resources by name")
        for task in self._registry.tasks.values():
            for name, asked in task.injected.items():
                if isinstance(asked, Resource) and asked.name not in resources:
                    raise StartupError(
                        f"{task.name}: parameter {name} asks for the resource {asked.name!r}, which LIFESPAN does not "
                        f"yield (it yields: {', '.join(map(str, resources)) or 'nothing'})"
                    )
        return resources


def _tell_of_own_items(arq_context: Mapping[Any, Any], resources: Mapping[str, Any]) -> None:
    """Log which items of ``ctx`` the project has given names that others have too: its own stay."""
    own = own_items(arq_context)
    if "session" in own:
        logger.warning('ctx["session"] is what on_startup has put there; the database\'s session is ctx["db_session"]')
    for name in own.keys() & resources.keys():
        if own[name] is not resources[name]:
            logger.warning("ctx[%r] is what on_startup has put there, and not what LIFESPAN yields", name)


def require_urls(config: Config) -> str:
    """The URL of Redis. Call it after the registry is loaded, as a project's code may make the default database.

    Raises:
        ConfigError: ``REDIS_URL`` is not set, or ``DATABASE_URL`` is not set and the project makes no database, or this
            Redis cannot hold a queue of that name.
    """
    redis_url = config.require_redis_url() if given_default() is not None else config.require_urls()[1]
    for name in config.queue_names:
        try:
            Connections(redis_url).check_name(name)
        except WorkerError as error:
            raise ConfigError(f"{config.variable('queue' if config.queues is None else 'queues')}: {error}") from None
    return redis_url


def _takes_session(task: Task[..., Any]) -> bool:
    return any(isinstance(asked, InjectedSession) and asked.database is None for asked in task.injected.values())

"""What a worker has open while it runs: the default database, the default queue, the resources; and its engine.

The resources are entered after the database is known to answer, and left before it closes.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import db
from db.database import given_default
from db.transient import Transient, transient
from worker.config import Config
from worker.context import Resource
from worker.engine.calling import AfterJob, Caller, Hook
from worker.engine.engine import Engine
from worker.engine.executor import Executor
from worker.errors import WorkerError
from worker.queue import Queue, set_default_queue
from worker.registry import Registry
from worker.signature import InjectedSession
from worker.task import Task

logger = logging.getLogger("worker")

_LOOK_AGAIN = 0.2  # seconds between two tries to connect


class StartupError(WorkerError):
    """The worker cannot start; one line says why."""


class Runtime:
    """One worker's open things."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        *,
        on_job_start: Hook | None = None,
        on_job_end: Hook | None = None,
        after_job_end: Hook | None = None,
    ) -> None:
        self._config = config
        self._registry = registry
        self._hooks = {"on_job_start": on_job_start, "on_job_end": on_job_end}
        self._after_job_end = after_job_end
        self._open = AsyncExitStack()

    async def open(self, arq_context: dict[Any, Any]) -> Engine:
        """Connect, enter the resources, and make the engine. What was opened before an error is closed again.

        Raises:
            StartupError: the database does not answer within ``WORKER_CONNECT_WAIT``, or its pool has fewer connections
                than jobs surely need, or a task asks for a resource that nobody provides.
        """
        try:
            return await self._opened(arq_context)
        except BaseException:
            await self.close()
            raise

    async def _opened(self, arq_context: dict[Any, Any]) -> Engine:
        database = self._database()
        self._open.push_async_callback(database.dispose)
        self._check_pool(database)
        await answering("DATABASE_URL", database.check, self._config.connect_wait)
        queue = Queue(self._redis_url, name=self._config.queue, max_payload=self._config.max_payload, default=True)
        self._open.push_async_callback(queue.close)
        resources = await self._resources()
        caller = Caller(threads=self._config.concurrency, arq_context=arq_context, **self._hooks)
        self._open.callback(caller.close)
        executor = Executor(
            self._registry.tasks,
            caller,
            timeout=self._config.job_timeout,
            max_tries=self._config.max_tries,
            resources=resources,
        )
        return Engine(
            self._config,
            self._registry.tasks,
            queue,
            executor,
            ask_database=database.check,
            after_job=None if self._after_job_end is None else AfterJob(self._after_job_end, arq_context),
        )

    async def close(self) -> None:
        """Leave the resources, then close all connections."""
        await self._open.aclose()
        set_default_queue(None)

    @property
    def longest_timeout(self) -> float:
        """Seconds that the longest of the tasks may take."""
        return max((timeout_of(task, self._config) for task in self._registry.tasks.values()), default=0.0)

    @property
    def _redis_url(self) -> str:
        return self._config.require_redis_url()

    def _database(self) -> db.Database[Any]:
        """The default database: the project's own if it made one, else one with the limits that fit its tasks."""
        chosen = given_default()
        if chosen is not None:
            return chosen
        url, _ = self._config.require_urls()
        return db.Database(
            url,
            default=True,
            pool_size=self._config.pool_size,
            pre_ping=False,  # a job that meets a stale connection runs again at no cost: cheaper than asking each time
            statement_timeout=self.longest_timeout,
            idle_in_transaction_timeout=self.longest_timeout + 30.0,
        )

    def _check_pool(self, database: db.Database[Any]) -> None:
        """A pool smaller than the number of jobs makes them wait for each other; where all need it, it is a mistake."""
        wanted = self._config.concurrency
        if database.pool_size >= wanted:
            return
        shortage = (
            f"{wanted} jobs run at once (WORKER_CONCURRENCY) on {database.pool_size} connections (WORKER_POOL_SIZE): "
            f"set WORKER_POOL_SIZE={wanted + 3} or more, or lower WORKER_CONCURRENCY"
        )
        if all(_takes_session(task) for task in self._registry.tasks.values()):
            raise StartupError(shortage)
        logger.warning(shortage)

    async def _resources(self) -> Mapping[str, Any]:
        lifespan = self._registry.lifespan
        resources = {} if lifespan is None else await self._open.enter_async_context(lifespan()) or {}
        for task in self._registry.tasks.values():
            for name, asked in task.injected.items():
                if isinstance(asked, Resource) and asked.name not in resources:
                    raise StartupError(
                        f"{task.name}: parameter {name} asks for the resource {asked.name!r}, which LIFESPAN does not "
                        f"yield (it yields: {', '.join(map(str, resources)) or 'nothing'})"
                    )
        return resources


async def answering(variable: str, ask: Callable[[], Awaitable[None]], wait: float) -> None:
    """Wait up to `wait` seconds for a server to answer.

    Raises:
        StartupError: it did not, or it answered that it never will (a wrong password, an unknown database).
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0.1)):
                await ask()
                return
        except Exception as error:  # noqa: BLE001 - told apart below
            if transient(error) is not Transient.LOST and not isinstance(error, OSError | TimeoutError):
                raise StartupError(f"{variable}: the server refuses: {_first_line(error)}") from None
            if time.monotonic() + _LOOK_AGAIN > deadline:
                reason = _first_line(error)
                raise StartupError(f"{variable}: no answer within {wait:g} s ({reason}); is the server up?") from None
            logger.info("waiting for %s: %s", variable, _first_line(error))
        await asyncio.sleep(_LOOK_AGAIN)


def timeout_of(task: Task[..., Any], config: Config) -> float:
    """Seconds that one attempt of `task` may take."""
    return config.job_timeout if task.options.timeout is None else task.options.timeout


def _takes_session(task: Task[..., Any]) -> bool:
    return any(isinstance(asked, InjectedSession) and asked.database is None for asked in task.injected.values())


def _first_line(error: BaseException) -> str:
    lines = str(getattr(error, "orig", None) or error).splitlines()
    return lines[0] if lines else type(error).__name__

"""The servers of the project, for commands that look at the fleet and act on it."""

import asyncio
import getpass
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from worker.admin.deployment import Deployment
from worker.admin.queues import TimeOverError
from worker.broker.broker import Broker, set_default_broker
from worker.broker.errors import RedisError
from worker.cli.database import opened
from worker.config import Config
from worker.errors import ConfigError, LedgerAwayError, RegistryError
from worker.process.errors import StartupError
from worker.registry import load

T = TypeVar("T")

_STATEMENT_TIMEOUT = 30.0  # seconds


def with_deployment(act: Callable[[Deployment], Awaitable[T]], config: Config | None = None) -> T:
    """Open the project's Redis and, if ``DATABASE_URL`` is set, its database; return what `act` returns.

    Raises:
        ConfigError: ``REDIS_URL`` is not set.
        StartupError: a server does not answer, or refuses.
        ActionRefusedError: the action does not fit the job.
    """

    async def run() -> T:
        async with _deployment(config or Config.load()) as deployment:
            return await act(deployment)

    try:
        return asyncio.run(run())
    except (RedisError, OSError) as error:
        raise StartupError(f"REDIS_URL: no answer ({error}); is the server up?") from None
    except LedgerAwayError as error:
        raise StartupError(str(error)) from None
    except TimeOverError as error:  # it was in the future when the command was typed
        raise ConfigError(str(error)) from None


def queues_of_tasks(config: Config) -> list[str]:
    """The queues of the registry's tasks, if ``WORKER_QUEUES`` does not say which queues there are.

    A task may name a queue that no worker serves. Without a registry there are none.
    """
    if config.queues is not None:
        return []
    try:
        tasks = load(config.registry).tasks.values()
    except RegistryError:  # other commands tell that: this one only looks at servers
        return []
    return sorted({task.options.queue or config.queue for task in tasks})


def actor() -> str:
    """The name that the audit rows of this command have: the user of this machine."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a name for its user
        return "unknown"


@asynccontextmanager
async def _deployment(config: Config) -> AsyncIterator[Deployment]:
    url, others = config.require_redis_url(), queues_of_tasks(config)
    broker = Broker(url, name=config.queue, max_payload=config.max_payload, default=True)
    try:
        async with AsyncExitStack() as stack:
            if config.database_url is not None:
                await stack.enter_async_context(opened(config, statement_timeout=_STATEMENT_TIMEOUT))
            deployment = Deployment.of_process(config).with_queues(others)
            await deployment.refresh()
            yield deployment
    finally:
        set_default_broker(None)
        await broker.close()

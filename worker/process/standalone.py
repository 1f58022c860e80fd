"""One worker process without arq, for ``python -m worker run``."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from worker.broker.connection import connect_as
from worker.broker.redis_url import CLUSTER
from worker.config import Config
from worker.process.arq_client import CheckedArqRedis
from worker.process.arq_codec import use_codec
from worker.process.event_loop import new_event_loop
from worker.process.gc_tuning import rare_collections
from worker.process.lifecycle import Lifecycle
from worker.process.logs import log_without_arq
from worker.process.runtime import Runtime, require_urls
from worker.process.server_wait import await_redis
from worker.process.stop_signals import exit_code_after
from worker.registry import Registry, load

logger = logging.getLogger("worker")


def work(
    config: Config, *, until_empty: bool = False, log_as: str | None = None, started: Callable[[], None] | None = None
) -> int:
    """Run a worker until a signal comes; the exit code: 0, 1 if the engine failed, or 70 if jobs hold all slots.

    Args:
        until_empty: stop when all queues are empty and no job runs. If a signal comes first, the exit code is 128 plus
            the signal's number, as the queues may not be empty.
        log_as: a name to put before each log line.
        started: called when the engine has started.

    Raises:
        ConfigError: a URL is not set.
        RegistryError: the registry cannot be loaded.
        StartupError: a server does not answer.
    """
    with rare_collections():
        registry = load(config.registry)
    redis_url = require_urls(config)
    log_without_arq(config.log, log_as)
    await_redis(redis_url, config.connect_wait)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_work(config, registry, started=started, until_empty=until_empty))


async def _work(config: Config, registry: Registry, *, started: Callable[[], None] | None, until_empty: bool) -> int:
    lifecycle = Lifecycle(Runtime(config, registry))
    async with _arq_context(config, registry) as context:
        try:
            await lifecycle.begin(context, until_empty=until_empty)
        except asyncio.CancelledError:
            if lifecycle.stopped_by is None:
                raise
        else:
            logger.info("%s works on %s: %s", config.id, ", ".join(config.queue_names), ", ".join(registry.tasks))
            if started is not None:
                started()
            await lifecycle.ended()
    return lifecycle.exit_code or exit_code_after(lifecycle.stopped_by, until_empty=until_empty)


@asynccontextmanager
async def _arq_context(config: Config, registry: Registry) -> AsyncIterator[dict[Any, Any]]:
    """The ``ctx`` of tasks, with arq's client as ``redis``. For a cluster it is empty, as arq has no client for one."""
    url = config.require_redis_url()
    if url.startswith(CLUSTER):
        yield {}
        return
    client = connect_as(CheckedArqRedis, url)
    client.tasks = registry.tasks
    use_codec(client, config)
    client.default_queue_name = config.queue_names[0]
    try:
        yield {"redis": client}
    finally:
        await client.aclose(close_connection_pool=True)

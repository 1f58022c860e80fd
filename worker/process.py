"""One worker process without arq: what ``python -m worker run`` is when there is one."""

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import FrameType
from typing import NoReturn

from arq.connections import ArqRedis

from worker.config import Config
from worker.connection import connect
from worker.event_loop import new_event_loop
from worker.lifecycle import STOP_SIGNALS, Lifecycle
from worker.logs import log_without_arq
from worker.message import deserialize, deserialize_trusting, serialize
from worker.registry import Registry, load
from worker.runtime import Runtime
from worker.settings import await_redis

logger = logging.getLogger("worker")


def work(
    config: Config, *, until_empty: bool = False, log_as: str | None = None, started: Callable[[], None] | None = None
) -> int:
    """Work until told to stop; the exit code: 0, or 1 if the engine failed.

    Args:
        until_empty: stop once all queues are empty and nothing runs. A signal that comes before makes the exit code
            128 and its number, as nobody knows then whether they are.
        log_as: a name to put before each log line.
        started: called once the engine works.

    Raises:
        ConfigError: a URL is not set.
        RegistryError: the registry cannot be loaded.
        StartupError: a server does not answer.
        SystemExit: a signal came before the event loop was there to hear it.
    """
    leave_on_signal(until_empty=until_empty)
    _, redis_url = config.require_urls()
    registry = load(config.registry)
    log_without_arq(log_as)
    await_redis(redis_url, config.connect_wait)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(_work(config, registry, started=started, until_empty=until_empty))


def leave_on_signal(*, until_empty: bool) -> None:
    """Until an event loop takes the signals over, they end the process without a traceback; `with` blocks are left."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(_exit_code(signal.Signals(number), until_empty=until_empty))

    for number in STOP_SIGNALS:
        signal.signal(number, leave)


async def _work(config: Config, registry: Registry, *, started: Callable[[], None] | None, until_empty: bool) -> int:
    lifecycle = Lifecycle(Runtime(config, registry))
    async with _arq_client(config) as redis:
        try:
            await lifecycle.begin({"redis": redis}, until_empty=until_empty)
        except asyncio.CancelledError:
            if lifecycle.stopped_by is None:
                raise
        else:
            logger.info("%s works on %s: %s", config.id, ", ".join(config.queue_names), ", ".join(registry.tasks))
            if started is not None:
                started()
            await lifecycle.ended()
    return lifecycle.exit_code or _exit_code(lifecycle.stopped_by, until_empty=until_empty)


def _exit_code(stopped_by: signal.Signals | None, *, until_empty: bool) -> int:
    """A worker that stops because it is told to has done what it should; one that should empty the queues has not."""
    return 128 + stopped_by if until_empty and stopped_by is not None else 0


@asynccontextmanager
async def _arq_client(config: Config) -> AsyncIterator[ArqRedis]:
    """What tasks find as ``ctx["redis"]``, as under arq."""
    client = connect(config.require_redis_url())
    try:
        yield ArqRedis(
            client.connection_pool,
            job_serializer=serialize,
            job_deserializer=deserialize_trusting if config.accept_pickle else deserialize,
            default_queue_name=config.queue_names[0],
        )
    finally:
        await client.aclose(close_connection_pool=True)

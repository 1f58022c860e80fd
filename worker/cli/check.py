"""``tandem check``: import every task of the registry."""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Annotated

import typer

from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.cli.output import FAILED, err, out, print_all, printable_text
from worker.cli.task_list import describe_problems, describe_tasks
from worker.cli.typos import warn_of_typos
from worker.config import Config
from worker.errors import RegistryError
from worker.process.served import describe, queues_not_served_here, unserved
from worker.registry import Registry, load

_REDIS_TIMEOUT = 3.0  # seconds for Redis to return the workers' records


def check(
    registry: Annotated[
        str | None,
        typer.Option(metavar="MODULE", help="Module that lists the tasks. Default: WORKER_REGISTRY."),
    ] = None,
    arq: Annotated[
        str | None,
        typer.Option(metavar="CLASS", help="Show what arq's settings class becomes, instead: app.WorkerSettings."),
    ] = None,
) -> int:
    """Import and show every task of the registry, or show every problem."""
    if arq is not None:
        from worker.cli.arq_check import check_arq  # noqa: PLC0415 - imports arq's worker

        warn_of_typos()
        return check_arq(arq)
    config = Config.load() if registry is None else Config.load(registry=registry)
    warn_of_typos()
    try:
        loaded = load(config.registry)
    except RegistryError as error:
        print_all(describe_problems(config.registry, error), err)
        return FAILED
    print_all(describe_tasks(loaded, config), out)
    print_all((printable_text(line, style="yellow") for line in _unserved(loaded, config)), err)
    return 0


def _unserved(registry: Registry, config: Config) -> Sequence[str]:
    """A line for each task queue that has no worker, or may have none if Redis does not answer."""
    elsewhere = queues_not_served_here(registry.tasks.values(), config)
    if not elsewhere:
        return ()
    if config.redis_url is not None:
        with suppress(RedisError, OSError):
            return tuple(describe(asyncio.run(_without_worker(config.redis_url, elsewhere)), config))
    return tuple(describe(elsewhere, config, is_known=False))


async def _without_worker(url: str, elsewhere: Mapping[str, Sequence[str]]) -> Mapping[str, Sequence[str]]:
    broker = Broker(url)
    try:
        async with asyncio.timeout(_REDIS_TIMEOUT):
            return await unserved(elsewhere, broker)
    finally:
        await broker.close()

"""Warnings of tasks whose queue no worker serves, at a worker's start and in ``python -m worker check``.

Their jobs would wait without a log line.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.config import Config
from worker.metrics.reader import MetricsReader
from worker.task import Task

logger = logging.getLogger("worker")

_STARTING = 5.0  # seconds in which workers that start together have written their first reports


def queues_not_served_here(tasks: Iterable[Task[..., Any]], config: Config) -> dict[str, list[str]]:
    """The queues of tasks that `config` does not serve, each with the names of its tasks."""
    elsewhere: dict[str, list[str]] = {}
    for task in tasks:
        queue = task.options.queue or config.queue
        if queue not in config.queue_names:
            elsewhere.setdefault(queue, []).append(task.name)
    return elsewhere


async def unserved(elsewhere: Mapping[str, Sequence[str]], broker: Broker) -> dict[str, Sequence[str]]:
    """The queues that no healthy worker serves, each with its tasks.

    Raises:
        RedisError, OSError: Redis does not answer.
    """
    reader = MetricsReader(broker)
    return {name: tasks for name, tasks in elsewhere.items() if not await reader.healthy_workers([name])}


def describe(queues: Mapping[str, Sequence[str]], config: Config, *, is_known: bool = True) -> Iterator[str]:
    """A line for each queue, with its tasks.

    Args:
        is_known: whether Redis has confirmed that no other worker serves the queues.
    """
    for queue, tasks in queues.items():
        yield (
            f"the jobs of {', '.join(tasks)} go to the queue {queue}, which "
            + ("no worker serves" if is_known else "this worker does not serve (another one may)")
            + f": add it to WORKER_QUEUES, which is {','.join(config.queue_names)} here"
        )


async def warn_of_unserved(tasks: Iterable[Task[..., Any]], config: Config, broker: Broker) -> None:
    """Log the tasks whose queue has no worker, after other workers have had time to start."""
    elsewhere = queues_not_served_here(tasks, config)
    if not elsewhere:
        return
    await asyncio.sleep(_STARTING)
    try:
        without_worker = await unserved(elsewhere, broker)
    except (RedisError, OSError):  # the engine logs that
        return
    for line in describe(without_worker, config):
        logger.warning("%s", line)

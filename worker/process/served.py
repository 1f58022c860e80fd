"""Tasks whose jobs go to queues without a worker: they wait in silence, so a worker's start and `check` name them."""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.broker.worker_records import WorkerRecords
from worker.config import Config
from worker.task import Task

logger = logging.getLogger("worker")

_STARTING = 5.0  # seconds in which workers that start together have told Redis of themselves


def left_to_others(tasks: Iterable[Task[..., Any]], config: Config) -> dict[str, list[str]]:
    """By queue the names of the tasks whose jobs go to a queue that `config` does not serve."""
    left: dict[str, list[str]] = {}
    for task in tasks:
        queue = task.options.queue or config.queue
        if queue not in config.queue_names:
            left.setdefault(queue, []).append(task.name)
    return left


async def unserved(left: Mapping[str, Sequence[str]], broker: Broker) -> dict[str, Sequence[str]]:
    """Of the queues that are left to others, with their tasks, those that no worker serves that is well.

    Raises:
        RedisError, OSError: Redis does not answer.
    """
    records = WorkerRecords(broker.connections)
    return {name: tasks for name, tasks in left.items() if not await records.health_records(name)}


def describe(queues: Mapping[str, Sequence[str]], config: Config, *, is_known: bool = True) -> Iterator[str]:
    """A line for each queue, with its tasks.

    Args:
        is_known: whether Redis has told that no other worker serves it.
    """
    for queue, tasks in queues.items():
        yield (
            f"the jobs of {', '.join(tasks)} go to the queue {queue}, which "
            + ("no worker serves" if is_known else "this worker does not serve; another one may")
            + f": name it in WORKER_QUEUES, which is {','.join(config.queue_names)} here"
        )


async def tell_unserved(tasks: Iterable[Task[..., Any]], config: Config, broker: Broker) -> None:
    """Warn of the tasks whose queue has no worker, once other workers have had the time to start."""
    left = left_to_others(tasks, config)
    if not left:
        return
    await asyncio.sleep(_STARTING)
    try:
        without_worker = await unserved(left, broker)
    except (RedisError, OSError):  # the engine tells of that
        return
    for line in describe(without_worker, config):
        logger.warning("%s", line)

"""The line that says, when a worker starts, that its queues hold pickled jobs."""

import asyncio
import logging
from contextlib import suppress

from db.text.plural import plural
from worker.broker.broker import Broker
from worker.broker.errors import RedisError
from worker.config import Config
from worker.foreign_codec import PICKLE_MAGIC

logger = logging.getLogger("worker")

_SAMPLE = 100  # jobs a queue: the first due ones
_LIMIT = 2.0  # seconds


async def log_pickled_jobs(config: Config, broker: Broker) -> None:
    """Look at the first jobs of each queue, and log one line if any of them is a pickle."""
    found: list[str] = []
    with suppress(RedisError, OSError, TimeoutError):  # the engine's loops wait for Redis, and log that they do
        async with asyncio.timeout(_LIMIT):
            for queue in config.queue_names:
                beginnings = await broker.payload_beginnings(queue, _SAMPLE)
                if pickles := beginnings.count(PICKLE_MAGIC):
                    found.append(f"{queue} ({pickles} of the first {plural(len(beginnings), 'job')})")
    if not found:
        return
    queues = ", ".join(found)
    if config.accept_pickle:
        logger.info("pickled jobs in %s: they run, as WORKER_ACCEPT_PICKLE is set", queues)
    else:
        logger.warning(
            "pickled jobs in %s: they fail, and the ledger keeps them. To run them, set WORKER_ACCEPT_PICKLE=true, "
            "then 'python -m worker jobs retry --error pickle'",
            queues,
        )

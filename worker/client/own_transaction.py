"""The transaction of a session or connection of the caller's own, and publishing its jobs after its COMMIT."""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy.util.concurrency import await_only, in_greenlet

from db.aio.cancellation import shielded
from db.text.plural import plural
from worker.aio import loop_thread
from worker.broker.broker import Broker
from worker.new_job import NewJob

logger = logging.getLogger("worker")

_PUBLISH_TIMEOUT = 3.0  # seconds; after that the relay publishes

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class OwnTransaction:
    """The transaction that the jobs of one call were enqueued in."""

    way_to_commit: str = "its session has committed: commit the session first"
    is_open: bool = True
    is_committed: bool = False
    is_joined: bool = False
    """Never known: a transaction that is part of another one is open until that one ends."""


def publish(broker: Broker, jobs: list[NewJob]) -> None:
    """Publish committed jobs. An error is only logged, as the jobs exist, and the relay publishes them."""
    try:
        wait_for(shielded(_published(broker, jobs)))
    except Exception as error:  # noqa: BLE001 - the COMMIT has succeeded, so its caller must not get an error
        reason = str(error) or type(error).__name__
        logger.warning(
            "Redis did not take %s, which the relay will publish: %s", plural(len(jobs), "committed job"), reason
        )


async def _published(broker: Broker, jobs: list[NewJob]) -> None:
    # The session keeps its connection until this has ended.
    async with asyncio.timeout(_PUBLISH_TIMEOUT):
        await broker.publish(jobs)


def wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine from synchronous code: on the event loop that this greenlet belongs to, or the process's own."""
    if not in_greenlet():
        return loop_thread.run(coroutine)
    result: T = await_only(coroutine)
    return result

"""What ``tandem doctor`` checks in the fleet: live workers, their versions, and jobs that are not published."""

import shlex
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

from db.text.plural import plural
from worker.broker.broker import Broker
from worker.broker.queue_state import QueueInspector
from worker.cli.doctor.finding import Finding, Level
from worker.context import from_milliseconds
from worker.ledger.ledger import Ledger
from worker.metrics.records import WorkerReport

_SAMPLE = 500  # of the pending rows that the relay checks, those that are due first


def check_workers(workers: Mapping[str, WorkerReport], queue_names: Sequence[str]) -> Iterator[Finding]:
    """The findings for the workers that serve these queues."""
    if not workers:
        yield Finding(Level.WARNING, "workers", f"no healthy worker serves {', '.join(queue_names)}", "tandem run")
        return
    yield Finding(Level.OK, "workers", f"{len(workers)} healthy: {', '.join(workers)}")
    by_version: dict[str, list[str]] = defaultdict(list)
    for worker_id, worker in workers.items():
        by_version[worker.version or "an unknown version"].append(worker_id)
    if len(by_version) > 1:
        versions = "; ".join(f"{version}: {', '.join(ids)}" for version, ids in sorted(by_version.items()))
        yield Finding(
            Level.WARNING,
            "versions",
            f"the workers' versions differ: {versions}",
            "finish the deploy, or roll it back",
        )


async def check_pauses(broker: Broker, queue_names: Sequence[str]) -> AsyncIterator[Finding]:
    """The findings for paused queues, whose jobs wait until somebody resumes them.

    Raises:
        RedisError, OSError: Redis does not answer.
    """
    inspector = QueueInspector(broker.connections)
    for queue in queue_names:
        pause = (await inspector.snapshot(queue)).pause
        if pause is None:
            continue
        until = f" until {from_milliseconds(pause.until):%Y-%m-%d %H:%M:%S} UTC" if pause.until else ""
        by = f", by {pause.actor}" if pause.actor else ""
        text = f"{queue} is paused since {from_milliseconds(pause.since):%Y-%m-%d %H:%M:%S} UTC{until}{by}"
        yield Finding(Level.WARNING, "pauses", text, f"tandem queues resume {shlex.quote(queue)}")


async def check_unpublished(ledger: Ledger, broker: Broker) -> Finding:
    """The finding for committed jobs that Redis does not know.

    Raises:
        RedisError, OSError: Redis does not answer.
    """
    due = await ledger.due((0, ""), _SAMPLE)
    by_queue: dict[str, list[str]] = defaultdict(list)
    for _, job_id, _, queue in due:
        by_queue[queue].append(job_id)
    missing = 0
    for queue, ids in by_queue.items():
        missing += (await broker.exists(queue, ids)).count(False)
    if not missing:
        return Finding(Level.OK, "unpublished jobs", "none: Redis knows every committed job that should run")
    return Finding(
        Level.WARNING,
        "unpublished jobs",
        f"Redis lacks {missing:,} of the first {plural(len(due), 'committed job')}",
        "start a worker: its relay publishes them within seconds",
    )

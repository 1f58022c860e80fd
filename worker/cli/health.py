"""``tandem health``: the healthy workers."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer
from pydantic_core import to_json

from db.text.printable import printable
from worker.broker.broker import Broker
from worker.broker.errors import AuthenticationError, RedisError, ResponseError
from worker.cli.options import Queues
from worker.cli.output import FAILED, explain, wide_out
from worker.cli.worker_table import describe_workers
from worker.config import Config
from worker.metrics.reader import MetricsReader
from worker.metrics.records import WorkerReport

_NEXT = "start one with 'tandem run', or see with 'tandem workers' why it is unwell"


def health(
    queues: Queues = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Show the healthy workers. The exit code is 0 only if there is one."""
    config = Config.load() if queues is None else Config.load(queues=queues)
    try:
        workers, depths = asyncio.run(_workers(config.require_redis_url(), config.queue_names))
    except (AuthenticationError, ResponseError) as error:
        return explain(printable(f"REDIS_URL: the server refuses: {error}"), FAILED)
    except (RedisError, OSError) as error:
        return explain(printable(f"REDIS_URL: no answer ({error}); is the server up?"), FAILED)
    if json:
        typer.echo(to_json({"workers": {worker_id: _data(worker, depths) for worker_id, worker in workers.items()}}))
    elif workers:
        wide_out().print(describe_workers(workers, depths))
    return 0 if workers else explain(f"no healthy worker serves {', '.join(config.queue_names)}: {_NEXT}", FAILED)


def _data(worker: WorkerReport, depths: Mapping[str, int]) -> dict[str, Any]:
    """What ``--json`` prints for a worker."""
    return {
        "queued": {name: depths[name] for name in worker.queues},
        "running": len(worker.jobs),
        "done": worker.done,
        "failed": worker.failed,
        "retried": worker.retried,
        "loop_lag": worker.loop_lag,
        "last_heartbeat": round(worker.last_heartbeat + worker.age, 3),
        "state": worker.state,
        "version": worker.version,
    }


async def _workers(url: str, names: Sequence[str]) -> tuple[dict[str, WorkerReport], dict[str, int]]:
    """The healthy workers, and the depths of all of their queues."""
    broker = Broker(url)
    try:
        workers = await MetricsReader(broker).healthy_workers(names)
        queues = sorted({name for worker in workers.values() for name in worker.queues})
        return workers, await broker.depths(queues)
    finally:
        await broker.close()

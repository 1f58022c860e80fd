"""``tandem health``: the healthy workers."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

import typer
from pydantic_core import to_json

from db.text.printable import printable
from worker.broker.broker import Broker
from worker.broker.errors import AuthenticationError, RedisError, ResponseError
from worker.cli.options import Queues
from worker.cli.output import FAILED, explain, wide_out
from worker.cli.worker_records import WorkerRecord, read_worker_records
from worker.cli.worker_table import describe_workers
from worker.config import Config

_NEXT = "start one with 'tandem run', or see with 'tandem workers' why it is unwell"


def health(
    queues: Queues = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Show the healthy workers. The exit code is 0 only if there is one."""
    config = Config.load() if queues is None else Config.load(queues=queues)
    try:
        workers = asyncio.run(_workers(config.require_redis_url(), config.queue_names))
    except (AuthenticationError, ResponseError) as error:
        return explain(printable(f"REDIS_URL: the server refuses: {error}"), FAILED)
    except (RedisError, OSError) as error:
        return explain(printable(f"REDIS_URL: no answer ({error}); is the server up?"), FAILED)
    if json:
        typer.echo(to_json({"workers": {worker_id: record.model_dump() for worker_id, record in workers.items()}}))
    elif workers:
        wide_out().print(describe_workers(workers))
    return 0 if workers else explain(f"no healthy worker serves {', '.join(config.queue_names)}: {_NEXT}", FAILED)


async def _workers(url: str, names: Sequence[str]) -> dict[str, WorkerRecord]:
    broker = Broker(url)
    try:
        return await read_worker_records(broker, names)
    finally:
        await broker.close()

"""``exporter``: serve the metrics of all queues, workers and job rows to Prometheus, from one place."""

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import Annotated

import typer
from rich.text import Text

import db
from worker.broker.broker import Broker
from worker.cli.options import Queues
from worker.cli.output import err
from worker.config import Config
from worker.errors import ConfigError
from worker.metrics.cluster import ClusterReader, ClusterSnapshot
from worker.process.stop_signals import STOP_SIGNALS

_LONGEST_READ = 10.0  # seconds; each server has a shorter limit of its own
_STATEMENT_TIMEOUT = 2.0  # seconds


def exporter(
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65535, help="Port to serve on.")] = 9465,
    queues: Queues = None,
) -> int:
    """Serve the metrics of all queues, workers and job rows to Prometheus.

    One exporter is enough. Each worker serves its own metrics on WORKER_METRICS_PORT.
    """
    config = Config.load() if queues is None else Config.load(queues=queues)
    config.require_redis_url()
    err.print(Text(f"metrics: http://localhost:{port}/metrics"))
    return asyncio.run(_export(config, port))


async def _export(config: Config, port: int) -> int:
    try:
        from worker.metrics import prometheus  # noqa: PLC0415 - prometheus-client need not be installed
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"the exporter needs the package prometheus-client ({error}): pip install 'tandem-jobs[metrics]'"
        ) from None
    loop, stopped = asyncio.get_running_loop(), asyncio.Event()
    async with AsyncExitStack() as opened:
        reader = _reader(config, opened)

        def read() -> ClusterSnapshot:
            return asyncio.run_coroutine_threadsafe(reader.read(), loop).result(_LONGEST_READ)

        stop = prometheus.serve([prometheus.ClusterCollector(read)], port)
        opened.push_async_callback(asyncio.to_thread, stop)
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
            loop.add_signal_handler(number, stopped.set)
        await stopped.wait()
    return 0


def _reader(config: Config, opened: AsyncExitStack) -> ClusterReader:
    broker = Broker(config.require_redis_url(), name=config.queue)
    opened.push_async_callback(broker.close)
    if config.database_url is None:
        return ClusterReader(broker, config.queue_names, None)
    database = db.Database(
        config.database_url, default=True, pool_size=1, statement_timeout=_STATEMENT_TIMEOUT, name="default"
    )
    opened.callback(db.set_default_database, None)
    opened.push_async_callback(database.dispose)
    return ClusterReader(broker, config.queue_names, config.ledger)

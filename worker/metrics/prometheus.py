"""Metrics in Prometheus' form. It needs the package prometheus-client: import this module only where it is used.

1. No client library is on the way of a job: the collectors read the `Meter` when Prometheus asks.
2. A worker's metrics are served by a thread of their own, so that they can be read while the event loop is blocked.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.client.enqueued import enqueued_counts
from worker.errors import ConfigError
from worker.metrics.cluster import ClusterSnapshot
from worker.metrics.counts import BOUNDS, BUSY, FINAL_OUTCOMES, OUTCOMES, RAN, WAITED
from worker.metrics.meter import WAITED_SUM, Meter
from worker.metrics.process import ProcessSnapshot
from worker.metrics.records import WorkerState

_TASK = ("task", "queue")
_BUCKETS = len(BOUNDS) + 1
_LIMITS = (*(f"{bound / 1000:g}" for bound in BOUNDS), "+Inf")


class EnqueuedCollector(Collector):
    """The jobs that this process has enqueued. A web process may register it: ``REGISTRY.register(...)``."""

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        enqueued = CounterMetricFamily(
            "tandem_jobs_enqueued", "Jobs that this process has enqueued, when they are committed.", labels=_TASK
        )
        for (queue, task), count in enqueued_counts().items():
            enqueued.add_metric((task, queue), count)
        yield enqueued


class WorkerCollector(Collector):
    """The metrics of one worker process.

    Args:
        meter: what its jobs have done.
        snapshot: returns the state of the process. Called in a thread.
    """

    def __init__(self, meter: Meter, snapshot: Callable[[], ProcessSnapshot]) -> None:
        self._meter = meter
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        rows = [
            ((task, queue), row[:]) for queue, tasks in list(self._meter.rows.items()) for task, row in [*tasks.items()]
        ]
        yield _outcomes("tandem_jobs_finished", "Jobs that are over, by outcome.", rows, FINAL_OUTCOMES)
        again = [outcome for outcome in OUTCOMES if outcome not in FINAL_OUTCOMES]
        yield _outcomes("tandem_jobs_put_back", "Attempts after which a job runs again, by outcome.", rows, again)
        yield _histogram("tandem_job_wait_seconds", "Seconds from the due time to the start.", rows, WAITED, WAITED_SUM)
        yield _histogram("tandem_job_duration_seconds", "Seconds that attempts have run.", rows, RAN, BUSY)
        yield from _process(self._snapshot())
        duplicates = sum(row[OUTCOMES.index("duplicate")] for _, row in rows)
        yield _counter(
            "tandem_duplicates_suppressed", "Attempts whose effects an earlier attempt had committed.", duplicates
        )


class ClusterCollector(Collector):
    """The metrics of all queues, workers and job rows, from one place.

    Args:
        read: reads the state of the cluster. Called in a thread.
    """

    def __init__(self, read: Callable[[], ClusterSnapshot]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        """The metrics of this moment."""
        return cluster_metrics(self._read())


def cluster_metrics(cluster: ClusterSnapshot) -> Iterator[Metric]:
    """The cluster's own metrics. What a server that is away would tell is missing."""
    answers = {("redis",): cluster.redis_answers, ("database",): cluster.database_answers}
    given = {server: answer for server, answer in answers.items() if answer is not None}
    yield _gauges("tandem_server_up", "Whether a server answers.", ("server",), given)
    states = ("scheduled", "waiting", "running")
    depths = {(queue.name, state): getattr(queue, state) for queue in cluster.queues for state in states}
    oldest = {(queue.name,): queue.oldest_due for queue in cluster.queues}
    able = {(queue.name,): queue.workers for queue in cluster.queues}
    yield _gauges("tandem_queue_depth", "Jobs of a queue, by state.", ("queue", "state"), depths)
    yield _gauges(
        "tandem_queue_oldest_due_seconds", "Seconds for which the oldest waiting job has been due.", ("queue",), oldest
    )
    yield _gauges("tandem_queue_workers", "Workers that serve a queue and are not unwell.", ("queue",), able)
    if cluster.redis_answers:
        workers = {(state.value,): cluster.workers.get(state, 0) for state in WorkerState}
        yield _gauges("tandem_workers", "Workers, by state.", ("state",), workers)
    for name, text, count in (
        ("tandem_failed_jobs", "Jobs that have failed for good, 100,000 at most.", cluster.failed_jobs),
        ("tandem_ledger_pending", "Pending job rows, 100,000 at most.", cluster.pending),
    ):
        if count is not None:
            yield GaugeMetricFamily(name, text, value=count)
    yield _gauges(
        "tandem_schedule_last_success_timestamp",
        "When a scheduled task last succeeded, in seconds since the epoch.",
        ("task",),
        {(task,): moment.timestamp() for task, moment in cluster.successes.items()},
    )


def exposition(collectors: Iterable[Collector]) -> tuple[bytes, str]:
    """Return the metrics in Prometheus' text format, and the media type of that."""
    return generate_latest(_registry(collectors)), CONTENT_TYPE_LATEST


def serve(collectors: Iterable[Collector], port: int) -> Callable[[], None]:
    """Serve metrics on all addresses of this machine, in a thread.

    Returns:
        What ends that.

    Raises:
        ConfigError: the port is in use.
    """
    try:
        server, thread = start_http_server(port, registry=_registry(collectors))
    except OSError as error:
        raise ConfigError(f"port {port} cannot be opened for metrics ({error.strerror}): choose another one") from None

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


def _registry(collectors: Iterable[Collector]) -> CollectorRegistry:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return registry


_Labels = tuple[str, ...]


def _outcomes(
    name: str, text: str, rows: Iterable[tuple[_Labels, list[int]]], outcomes: Sequence[str]
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=(*_TASK, "outcome"))
    for labels, row in rows:
        for outcome in outcomes:
            family.add_metric((*labels, outcome), row[OUTCOMES.index(outcome)])
    return family


def _histogram(
    name: str, text: str, rows: Iterable[tuple[_Labels, list[int]]], first: int, sum_lane: int
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=_TASK)
    for labels, row in rows:
        seen, buckets = 0, []
        for limit, count in zip(_LIMITS, row[first : first + _BUCKETS], strict=True):
            seen += count
            buckets.append((limit, seen))
        family.add_metric(labels, buckets, row[sum_lane] / 1000)
    return family


def _process(process: ProcessSnapshot) -> Iterator[Metric]:
    slots = {("busy",): process.busy, ("free",): process.slots - process.busy}
    yield _gauges("tandem_worker_slots", "Places for running jobs, by state.", ("state",), slots)
    yield GaugeMetricFamily(
        "tandem_loop_lag_seconds", "Seconds that the event loop takes to answer.", value=process.loop_lag
    )
    if process.pool is not None:
        size, used, idle = process.pool
        pool = {("used",): used, ("idle",): idle, ("unopened",): max(size - used - idle, 0)}
        yield _gauges("tandem_pool_connections", "Connections to the default database, by state.", ("state",), pool)
    for name, text, count in (
        (
            "tandem_crashes",
            "Deaths of workers during jobs that this worker has taken over.",
            process.crashes,
        ),
        ("tandem_leases_lost", "Leases of running jobs that had ended or were lost.", process.leases_lost),
        ("tandem_conflict_reruns", "Attempts run again after a conflict in the database.", process.conflict_reruns),
        ("tandem_relay_published", "Pending jobs that were not in Redis and were published.", process.relay_published),
    ):
        yield _counter(name, text, count)


def _counter(name: str, text: str, count: int) -> CounterMetricFamily:
    return CounterMetricFamily(name, text, value=count)


def _gauges(name: str, text: str, labels: _Labels, values: Mapping[Any, float]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=labels)
    for of_labels, value in values.items():
        family.add_metric(of_labels, value)
    return family

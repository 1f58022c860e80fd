"""The metrics of all queues, workers and job rows, for Prometheus."""

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from worker.dashboard.site import Site
from worker.metrics.cluster import ClusterReader


class MetricsPage:
    """What ``tandem exporter`` serves, beside the pages: ``GET metrics``, with a viewer's token."""

    def __init__(self, site: Site) -> None:
        self._site = site

    async def show(self, _request: Request) -> Response:
        """Write the metrics in Prometheus' text format."""
        try:
            from worker.metrics import prometheus  # noqa: PLC0415 - prometheus-client need not be installed
        except ModuleNotFoundError:
            raise HTTPException(501, "Metrics need prometheus-client: pip install 'tandem-jobs[metrics]'") from None
        deployment = self._site.deployment
        ledger = None if deployment.ledger is None else deployment.ledger.name
        snapshot = await ClusterReader(deployment.broker, deployment.queues, ledger).read()
        content, media_type = prometheus.exposition([prometheus.ClusterCollector(lambda: snapshot)])
        return Response(content, media_type=media_type)

"""The dashboard's metrics for Prometheus."""

import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.worker.dashboard.conftest import VIEWER, as_operator, client_of
from tests.worker.dashboard.world import World


async def test_a_viewers_token_reads_the_clusters_metrics(world: World) -> None:
    """In Prometheus' own format; without a token there are none."""
    async with client_of() as client:
        refused = await client.get("/metrics")
        answer = await client.get("/metrics", headers={"authorization": f"Bearer {VIEWER}"})
    assert (refused.status_code, answer.status_code) == (401, 200)
    assert answer.headers["content-type"].startswith("text/plain")
    samples = {
        sample.name: sample.value for each in text_string_to_metric_families(answer.text) for sample in each.samples
    }
    assert samples["tandem_failed_jobs"] > 0
    assert {"tandem_queue_depth", "tandem_ledger_pending", "tandem_server_up"} <= samples.keys()


async def test_without_the_package_it_says_what_to_install(empty_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other pages need no prometheus-client."""
    monkeypatch.setitem(sys.modules, "worker.metrics.prometheus", None)
    monkeypatch.delattr("worker.metrics.prometheus", raising=False)
    async with as_operator() as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 501
    assert "tandem-jobs[metrics]" in answer.text

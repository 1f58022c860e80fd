"""docs/how-to/monitoring.md, its alert rules and its Grafana dashboard name all metrics that exist, and no others."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from db.database import PoolUsage
from worker.metrics.cluster import ClusterSnapshot, QueueSnapshot
from worker.metrics.meter import Meter
from worker.metrics.process import ProcessSnapshot
from worker.metrics.prometheus import ClusterCollector, EnqueuedCollector, WorkerCollector
from worker.metrics.records import WorkerState

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "how-to" / "monitoring.md"
RULES = DOCS / "monitoring" / "alerts.yaml"
DASHBOARD = DOCS / "monitoring" / "grafana.json"
PROMTOOL = shutil.which("promtool")


def served() -> dict[str, set[str]]:
    """The labels of each metric that Tandem serves, by the name that a query has."""
    meter = Meter(["send"])
    meter.row("mail", "send")
    process = ProcessSnapshot(1, 1, 0.0, PoolUsage(1, 1, 0), 0, 0, 0, 0)
    cluster = ClusterSnapshot(
        redis_answers=True,
        database_answers=True,
        queues=[QueueSnapshot("mail", 0, 0, 0, 0.0, 0)],
        workers={WorkerState.WORKING: 1},
        failed_jobs=0,
        pending=0,
        successes={"send": datetime.now(UTC)},
    )
    names: dict[str, set[str]] = {"tandem_jobs_enqueued_total": {"task", "queue"}}
    collectors = (WorkerCollector(meter, lambda: process), ClusterCollector(lambda: cluster), EnqueuedCollector())
    for collector in collectors:
        for family in collector.collect():
            for sample in family.samples:
                names.setdefault(sample.name, set()).update(sample.labels)
    return names


def expressions() -> Iterator[str]:
    """Every query of the alert rules, the dashboard and the page."""
    yield from (rule["expr"] for rule in _rules())
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        yield from (target["expr"] for target in panel.get("targets", []))
    yield from (variable["definition"] for variable in dashboard["templating"]["list"] if "definition" in variable)
    yield from re.findall(r"query: (.+)", PAGE.read_text())


def _rules() -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    return rules


@pytest.mark.parametrize("expression", [*expressions()])
def test_each_query_is_of_metrics_and_labels_that_exist(expression: str) -> None:
    """A misspelt name would be a panel that stays empty, or an alert that never comes."""
    metrics = served()
    found = re.findall(r"\b(tandem_\w+)(?:\{([^}]*)\})?", expression)
    assert found
    for name, selector in found:
        assert name in metrics, name
        assert set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector)) <= metrics[name], selector
    of_target = {"instance", "le"}
    known = {label for name, _ in found for label in metrics[name]} | of_target
    for labels in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        assert set(re.findall(r"\w+", labels)) <= known, labels


def test_the_page_lists_every_metric_with_its_labels() -> None:
    """And no other."""
    rows = dict(re.findall(r"^\| `(tandem_\w+)` \| ([^|]*)\|", PAGE.read_text(), re.MULTILINE))
    metrics = {re.sub(r"_(bucket|sum|count)$", "", name): labels - {"le"} for name, labels in served().items()}
    assert set(rows) == set(metrics)
    for name, labels in metrics.items():
        assert labels <= set(re.findall(r"`(\w+)`", rows[name])), name


def test_the_page_lists_every_alert() -> None:
    """And no other."""
    rows = re.findall(r"^\| `(Tandem\w+)` \|", PAGE.read_text(), re.MULTILINE)
    assert rows == [rule["alert"] for rule in _rules()]


def test_every_alert_has_a_test() -> None:
    """In alerts.test.yaml."""
    tests = yaml.safe_load((DOCS / "monitoring" / "alerts.test.yaml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case["exp_alerts"]}
    assert fired == {rule["alert"] for rule in _rules()}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: apt install prometheus)")
def test_promtool_accepts_the_rules_and_their_tests_pass() -> None:
    """Prometheus' own tool evaluates the rules on series of our own."""
    for words in (["check", "rules", str(RULES)], ["test", "rules", str(DOCS / "monitoring" / "alerts.test.yaml")]):
        done = subprocess.run([str(PROMTOOL), *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

"""The YAML and the unit files in the pages can be read, and what they say fits together."""

import configparser
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.page_runner import blocks
from worker.config import Config

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"
PAGES = sorted(HOW_TO.glob("*.md"))


def documents(page: Path) -> list[Any]:
    """The YAML documents of a page."""
    found = [block.code for block in blocks(page.read_text()) if block.kind == "yaml"]
    return [document for code in found for document in yaml.safe_load_all(code)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_yaml_can_be_read(page: Path) -> None:
    """Each block is a mapping."""
    assert all(isinstance(document, dict) for document in documents(page))


def test_pods_get_more_time_than_their_workers_take() -> None:
    """The grace of the pod is longer than the worker's, and the settings exist."""
    (deployment,) = [each for each in documents(HOW_TO / "kubernetes.md") if each["kind"] == "Deployment"]
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    settings = {each["name"]: each["value"] for each in container["env"]}
    assert pod["terminationGracePeriodSeconds"] > float(settings["WORKER_GRACE"]) + 5
    assert {name.removeprefix("WORKER_").lower() for name in settings} <= Config.model_fields.keys()
    assert deployment["spec"]["selector"]["matchLabels"] == deployment["spec"]["template"]["metadata"]["labels"]


def test_systemd_waits_longer_than_the_grace() -> None:
    """Running jobs can finish before SIGKILL."""
    (unit,) = [block.code for block in blocks((HOW_TO / "systemd.md").read_text()) if block.kind == "ini"]
    parser = configparser.ConfigParser(strict=True)
    parser.read_string(unit)
    assert parser.getint("Service", "TimeoutStopSec") > Config.model_fields["grace"].default + 5

"""`compose.yaml` and `Dockerfile`, as far as they can be checked without Docker."""

import importlib
import json
import re
import shutil
import subprocess
import tomllib
from fnmatch import fnmatch
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from worker.config import Config

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = [name for name, service in SERVICES.items() if "build" in service]

_WORDS = {"type": "array", "items": {"type": "string"}, "minItems": 1}
_DURATION = {"type": "string", "pattern": "^([0-9]+(ms|s|m|h))+$"}
_NAMES = {"type": "object", "propertyNames": {"pattern": "^[a-zA-Z0-9._-]+$"}}
_SERVICE = {
    "type": "object",
    "oneOf": [{"required": ["image"]}, {"required": ["build"]}],
    "additionalProperties": False,
    "properties": {
        "build": {"type": "string"},
        "command": _WORDS,
        "depends_on": {
            **_NAMES,
            "additionalProperties": {
                "type": "object",
                "additionalProperties": False,
                "required": ["condition"],
                "properties": {
                    "condition": {"enum": ["service_started", "service_healthy", "service_completed_successfully"]}
                },
            },
        },
        "environment": {"type": "object", "additionalProperties": {"type": ["string", "number", "null"]}},
        "healthcheck": {
            "type": "object",
            "additionalProperties": False,
            "required": ["test"],
            "properties": {
                "test": {**_WORDS, "contains": {"enum": ["CMD", "CMD-SHELL"]}},
                "interval": _DURATION,
                "timeout": _DURATION,
                "start_period": _DURATION,
                "retries": {"type": "integer"},
            },
        },
        "image": {"type": "string"},
        "init": {"type": "boolean"},
        "ports": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
        "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]},
        "stop_grace_period": _DURATION,
        "volumes": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
    },
}
SCHEMA = {
    "type": "object",
    "required": ["services"],
    "additionalProperties": False,
    "properties": {
        "services": {**_NAMES, "additionalProperties": _SERVICE},
        "volumes": {**_NAMES, "additionalProperties": {"type": "null"}},
    },
    "patternProperties": {"^x-": {}},
}
"""The part of the Compose Specification's schema that our file keeps to."""


def test_the_compose_file_follows_the_compose_specification() -> None:
    """Every key is one of the Compose Specification, with a value of its type."""
    jsonschema.Draft7Validator(SCHEMA).validate(COMPOSE)


def docker_compose_is_here() -> bool:
    """Whether Docker with the compose command is installed. Its daemon need not run."""
    docker = shutil.which("docker")
    return (
        docker is not None
        and not subprocess.run([docker, "compose", "version"], check=False, capture_output=True).returncode
    )


@pytest.mark.skipif(not docker_compose_is_here(), reason="no docker compose to ask; its rules are tested above")
def test_docker_accepts_the_compose_file() -> None:
    """Docker accepts the file."""
    subprocess.run(["docker", "compose", "--file", ROOT / "compose.yaml", "config", "--quiet"], check=True)


def test_every_service_that_is_waited_for_has_a_health_check_or_an_end() -> None:
    """A service whose health is a condition has a health check. A service whose end is a condition ends."""
    assert set(SERVICES) == {"redis", "postgres", "migrate", "worker", "web"}
    for service in SERVICES.values():
        for name, dependency in service.get("depends_on", {}).items():
            assert dependency["condition"] != "service_healthy" or "healthcheck" in SERVICES[name]
            assert (dependency["condition"] == "service_completed_successfully") == (SERVICES[name]["restart"] == "no")


def test_every_worker_and_producer_starts_after_the_migration() -> None:
    """Each service that runs or enqueues jobs starts after the migration has succeeded."""
    assert SERVICES["migrate"]["command"] == ["python", "-m", "worker", "migrate"]
    for name in ("worker", "web"):
        assert SERVICES[name]["depends_on"]["migrate"]["condition"] == "service_completed_successfully"


def test_every_mounted_volume_is_declared() -> None:
    """Each named volume that is mounted is declared."""
    mounted = {volume.partition(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert mounted == set(COMPOSE["volumes"])


def test_only_the_application_publishes_a_port() -> None:
    """Redis and PostgreSQL cannot be reached from outside, and their ports do not collide with the machine's."""
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "web": ["8000:8000"]
    }


def test_redis_never_evicts() -> None:
    """A full Redis refuses writes: evicted keys would be lost jobs."""
    command = SERVICES["redis"]["command"]
    assert command[command.index("--maxmemory-policy") + 1] == "noeviction"


@pytest.mark.parametrize("name", OURS)
def test_the_environment_of_each_service_loads_as_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of each service loads as settings, with the URLs of the file's two servers."""
    for variable, value in SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, value)
    database_url, redis_url = Config.load().require_urls()
    account = SERVICES["postgres"]["environment"]
    user, password, database = (account[f"POSTGRES_{key}"] for key in ("USER", "PASSWORD", "DB"))
    assert database_url == f"postgresql+asyncpg://{user}:{password}@postgres:5432/{database}"
    assert redis_url == "redis://redis:6379/0"


def test_the_commands_of_services_exist_in_the_image() -> None:
    """The image installs each program, and has each module that a command names."""
    scripts = {script.name: script.dist for script in entry_points(group="console_scripts")}
    extras = re.findall(r"pip install .*\[(\w+)\]", dockerfile())
    installed = [
        *PROJECT["dependencies"],
        *(line for extra in extras for line in PROJECT["optional-dependencies"][extra]),
    ]
    distributions = {Requirement(line).name for line in installed}
    for name in ("worker", "web"):
        program = next(word for word in SERVICES[name]["command"] if word in scripts)
        dist = scripts[program]
        assert dist
        assert dist.name in distributions
    module, attribute = SERVICES["web"]["command"][1].split(":")
    assert hasattr(importlib.import_module(module), attribute)
    assert SERVICES["worker"]["command"] == image_command()
    assert image_command()[-2:] == ["arq", "worker.Settings"]
    assert SERVICES["worker"]["healthcheck"]["test"] == ["CMD", "arq", "--check", "worker.Settings"]


def test_docker_stops_the_worker_only_after_its_grace_period() -> None:
    """Docker kills the worker only after the worker's grace period."""
    assert float(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > Config.load().grace


def dockerfile() -> str:
    """The image's recipe."""
    return (ROOT / "Dockerfile").read_text()


def image_command() -> list[str]:
    """The command of the image."""
    (words,) = re.findall(r"^CMD (.+)$", dockerfile(), re.MULTILINE)
    command: list[str] = json.loads(words)
    return command


def test_every_path_that_the_image_copies_exists() -> None:
    """Each path that is copied into the image exists, and is not kept from Docker."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    copied = [words.split()[:-1] for words in re.findall(r"^COPY (.+)$", dockerfile(), re.MULTILINE)]
    sources = [source for sources in copied for source in sources]
    assert {"db", "worker", "tasks", "examples"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists()
        verdicts = [rule.startswith("!") for rule in rules if fnmatch(source, rule.removeprefix("!"))]
        assert verdicts[-1:] == [True]


def test_the_image_has_a_supported_python() -> None:
    """The image's Python is one that pyproject.toml allows."""
    version = re.search(r"^FROM python:([\d.]+)", dockerfile(), re.MULTILINE)
    assert version
    assert version[1] in SpecifierSet(PROJECT["requires-python"])


def test_the_image_does_not_run_as_root() -> None:
    """The last `USER` of the Dockerfile is an account that the image has created."""
    user = re.findall(r"^USER (\w+)$", dockerfile(), re.MULTILINE)[-1]
    assert re.search(rf"useradd .*\b{user}$", dockerfile(), re.MULTILINE)

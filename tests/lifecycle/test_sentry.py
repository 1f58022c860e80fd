"""Sentry in real workers, with a transport that writes its events to a file: one for each job that fails for good."""

import json
from typing import Any

import pytest

from tests.lifecycle.conftest import Project
from worker import Broker
from worker.broker.records import now_ms
from worker.message import encode
from worker.new_job import NewJob

pytestmark = pytest.mark.usefixtures("broker")

REGISTRY = """
import json, pathlib
import arq.worker
import sentry_sdk
from sentry_sdk.integrations.dedupe import DedupeIntegration
from sentry_sdk.transport import Transport

class ToFile(Transport):
    def capture_envelope(self, envelope):
        with pathlib.Path("events.jsonl").open("a") as file:
            for item in envelope.items:
                if item.type == "event":
                    file.write(json.dumps(item.payload.json) + "\\n")

sentry_sdk.init(dsn="http://key@localhost/1", transport=ToFile, traces_sample_rate=1.0, OPTIONS)

async def stock(ctx):
    raise LookupError("from a function of arq's list")

MAIL = ("send", "retried", "fail", "captures", "mother")
TASKS = (*(f"tasks.mail.{name}" for name in MAIL), arq.worker.func(stock, name="stock"))
"""

MAIL = """
import logging
import sentry_sdk
from worker import Retry, current_job, task

@task
async def send(to: str) -> None:
    sentry_sdk.set_tag("secret", to)
    logging.getLogger("app").info("breadcrumb of send")

@task
async def retried() -> None:
    if current_job().attempt == 1:
        raise Retry(defer=0.01)

@task(max_tries=2, retry_on=(OSError,))
async def fail(password: str) -> None:
    raise ConnectionError("no network")

@task
async def captures() -> None:
    try:
        raise ValueError("captured by the task")
    except ValueError as error:
        sentry_sdk.capture_exception(error)
        raise

@task
async def mother(ctx: dict) -> None:
    await ctx["redis"].enqueue_job("fail", "hunter2", _job_id="child")
"""


@pytest.fixture
def shop(project: Project) -> Project:
    project.write("tasks/mail.py", MAIL)
    project.write("tasks/registry.py", REGISTRY.replace("OPTIONS", ""))
    return project


async def enqueue(broker: Broker, name: str, **arguments: str) -> None:
    """A job of a task of the project, with the task's name as its id."""
    payload = encode(name, json.dumps(arguments).encode(), now_ms())
    await broker.enqueue([NewJob(name, payload, name, broker.name, now_ms(), expires=60_000)])


def event_of(job_id: str, events: list[dict[str, Any]]) -> dict[str, Any]:
    (event,) = [event for event in events if event["tags"]["job_id"] == job_id]
    return event


async def events(shop: Project, *command: str, **settings: str) -> list[dict[str, Any]]:
    """The events of a worker that has run all jobs."""
    with shop.command(*command, "--burst", WORKER_UNKNOWN_FOR="0", **settings) as worker:
        assert await worker.ends() == 0
    file = shop.folder / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


COMMANDS = pytest.mark.parametrize("command", [("arq", "worker.Settings"), ("worker", "run")])
LOGS = pytest.mark.parametrize("log_jobs", ["all", "off"])


@COMMANDS
@LOGS
async def test_a_job_that_fails_for_good_is_one_event_and_a_retry_none(
    shop: Project, broker: Broker, command: tuple[str, ...], log_jobs: str
) -> None:
    """The event does not depend on log lines, or on earlier reports of the error. Other outcomes send no event."""
    await enqueue(broker, "send", to="hunter2")
    await enqueue(broker, "retried")
    await enqueue(broker, "fail", password="hunter2")
    await enqueue(broker, "captures")
    await enqueue(broker, "stock")
    await enqueue(broker, "missing")
    found = await events(shop, *command, WORKER_LOG_JOBS=log_jobs, WORKER_CONCURRENCY="1")
    assert {event["tags"]["job_id"] for event in found} == {"fail", "captures", "stock", "missing"}
    assert len(found) == 4
    failed = event_of("fail", found)
    assert failed["transaction"] == "fail"
    assert failed["level"] == "error"
    assert {"task": "fail", "queue": "arq:queue", "attempt": "2"}.items() <= failed["tags"].items()
    assert failed["contexts"]["job"] == {"job_id": "fail", "task": "fail", "queue": "arq:queue", "attempt": 2}
    (error,) = failed["exception"]["values"]
    assert (error["type"], error["value"], error["mechanism"]["type"]) == ("ConnectionError", "no network", "tandem")
    assert "secret" not in failed["tags"]
    crumbs = [crumb["message"] for crumb in failed.get("breadcrumbs", {}).get("values", [])]
    assert "breadcrumb of send" not in crumbs
    assert event_of("missing", found)["exception"]["values"][0]["type"] == "UnknownTaskError"


@COMMANDS
async def test_jobs_that_arqs_client_enqueues_in_a_task_are_reported_too(
    shop: Project, broker: Broker, command: tuple[str, ...]
) -> None:
    """Sentry's integration for arq patches that client, and arq's worker: neither breaks."""
    await enqueue(broker, "mother")
    found = await events(shop, *command)
    assert [event["contexts"]["job"]["parent"] for event in found] == ["mother"]
    assert event_of("child", found)["transaction"] == "fail"


async def test_without_the_integrations_of_its_own_choice_it_reports_the_same(shop: Project, broker: Broker) -> None:
    """`default_integrations=False` leaves neither logging nor deduplication nor arq's integration."""
    shop.write("tasks/registry.py", REGISTRY.replace("OPTIONS", "default_integrations=False"))
    await enqueue(broker, "fail", password="hunter2")
    assert len(await events(shop, "arq", "worker.Settings")) == 1


async def test_an_error_is_sent_once_without_the_integration_that_drops_doubles(shop: Project, broker: Broker) -> None:
    """The logging integration alone would report the log line of a failed job once more."""
    shop.write("tasks/registry.py", REGISTRY.replace("OPTIONS", "disabled_integrations=[DedupeIntegration()]"))
    await enqueue(broker, "fail", password="hunter2")
    await enqueue(broker, "captures")
    assert len(await events(shop, "arq", "worker.Settings")) == 2


async def test_without_a_client_nothing_is_reported(shop: Project, broker: Broker) -> None:
    """The package may be imported and not set up."""
    shop.write("tasks/registry.py", "import sentry_sdk\nTASKS = ('tasks.mail.fail',)")
    await enqueue(broker, "fail", password="hunter2")
    assert await events(shop, "arq", "worker.Settings") == []

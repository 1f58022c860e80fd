"""``WORKER_LOG`` in real workers: every line of a task has its job, under arq's command and without it."""

import json
from typing import Any

import pytest

from tests.commands import Command
from tests.lifecycle.conftest import Project
from worker import Broker, task
from worker.broker.records import now_ms
from worker.message import Envelope
from worker.new_job import NewJob

pytestmark = pytest.mark.usefixtures("broker")

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"

MAIL = """
import asyncio, logging
from worker import Retry, current_job, task

log = logging.getLogger("app.mail")

@task
async def send(to: str) -> None:
    log.info("from the task")
    await asyncio.to_thread(log.info, "from a thread")
    await asyncio.create_task(child())
    logging.getLogger("arq.jobs").info("from arq's own logger")
    plain.fn()

async def child():
    log.warning("from a child task")
    log.debug("not shown")

@task
def plain() -> None:
    log.info("from a plain function")

@task(max_tries=2)
async def fail() -> None:
    if current_job().attempt == 1:
        raise Retry(defer=0.01)
    raise ValueError("no\\nstock")
"""


@pytest.fixture
def mail(project: Project) -> Project:
    project.write("tasks/mail.py", MAIL)
    project.write("tasks/registry.py", 'TASKS = ("tasks.mail.send", "tasks.mail.plain", "tasks.mail.fail")')
    return project


@task(name="send")
async def send(to: str) -> None: ...


@task(name="plain")
async def plain() -> None: ...


@task(name="fail")
async def fail() -> None: ...


@task(name="missing")
async def missing() -> None: ...


async def enqueue(broker: Broker) -> None:
    """The job `j1` of `send` in a trace, `j2` of `plain`, `j3` of `fail`, and `j4` of no task."""
    payload = Envelope("send", now_ms(), traceparent=f"00-{TRACE_ID}-b7ad6b7169203331-01").around(b'{"to":"ann"}')
    await broker.enqueue([NewJob("j1", payload, "send", broker.name, now_ms(), expires=60_000)])
    await plain.using(job_id="j2").enqueue()
    await fail.using(job_id="j3").enqueue()
    await missing.using(job_id="j4").enqueue()


async def burst(command: Command) -> list[str]:
    """The lines of a worker that has run all jobs."""
    with command as worker:
        assert await worker.ends() == 0
        return worker.output.splitlines()


FORMS = pytest.mark.parametrize("command", [("arq", "worker.Settings", "--burst"), ("worker", "run", "--burst")])


@FORMS
async def test_every_line_is_json_and_the_lines_of_a_task_have_its_job(
    mail: Project, broker: Broker, command: tuple[str, ...]
) -> None:
    """The project's own loggers, in threads and child tasks; arq's loggers; and the lines about the job itself."""
    await enqueue(broker)
    lines = await burst(mail.command(*command, WORKER_LOG="json", WORKER_UNKNOWN_FOR="0"))
    found: list[dict[str, Any]] = [json.loads(line) for line in lines]
    first = [line for line in found if line.get("job_id") == "j1"]
    common = {"job_id": "j1", "task": "send", "attempt": 1, "queue": "arq:queue", "trace_id": TRACE_ID}
    assert [{name: line.get(name) for name in common} for line in first] == [common] * 7
    assert [line["message"] for line in first[1:-1]] == [
        "from the task",
        "from a thread",
        "from a child task",
        "from arq's own logger",
        "from a plain function",
    ]
    assert "s → j1:send(to='ann')" in first[0]["message"]
    assert "s ← j1:send ● " in first[-1]["message"]
    assert [line["message"] for line in found].count("from a child task") == 1
    (plain_line,) = [line for line in found if line.get("job_id") == "j2" and line["logger"] == "app.mail"]
    assert plain_line["task"] == "plain"
    assert "trace_id" not in plain_line
    attempts = [line["attempt"] for line in found if line.get("job_id") == "j3"]
    assert attempts == [1, 1, 2, 2]
    (failed,) = [line for line in found if line.get("job_id") == "j3" and line["level"] == "error"]
    assert failed["traceback"].splitlines()[-2:] == ["  ValueError: no", "  stock"]
    refused = [line for line in found if line.get("job_id") == "j4"]
    assert [(line["task"], line["level"]) for line in refused] == [("missing", "error")]


@FORMS
async def test_text_keeps_arqs_form_and_adds_the_job(mail: Project, broker: Broker, command: tuple[str, ...]) -> None:
    """Each line once, those of arq's own loggers too."""
    await enqueue(broker)
    lines = await burst(mail.command(*command, WORKER_LOG="text", WORKER_UNKNOWN_FOR="0"))
    suffix = f"[job=j1 task=send attempt=1 queue=arq:queue trace={TRACE_ID}]"
    assert [line[8:] for line in lines if "job=j1" in line][1:-1] == [
        f": from the task {suffix}",
        f": from a thread {suffix}",
        f": from a child task {suffix}",
        f": from arq's own logger {suffix}",
        f": from a plain function {suffix}",
    ]
    (started,) = [line for line in lines if "→ j1:send(to='ann')" in line]
    assert started.endswith(suffix)


@FORMS
async def test_without_the_setting_lines_are_arqs_as_before(
    mail: Project, broker: Broker, command: tuple[str, ...]
) -> None:
    """No field is added, and the project's own INFO lines are not shown unless it sets up logging."""
    await enqueue(broker)
    lines = await burst(mail.command(*command, WORKER_UNKNOWN_FOR="0"))
    assert not [line for line in lines if "[job=" in line or "from a thread" in line]
    assert [line for line in lines if "→ j1:send(to='ann')" in line]
    assert [line for line in lines if "! j4:missing failed" in line]


async def test_a_projects_own_log_dict_is_written_as_json_once(mail: Project, broker: Broker) -> None:
    """arq's ``--custom-log-dict``, with handlers of its own on the root and on arq's logger, and a file."""
    mail.write(
        "logs.py",
        """
        LOGS = {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {
                "out": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"},
                "file": {"class": "logging.FileHandler", "filename": "app.log"},
            },
            "root": {"handlers": ["out", "file"], "level": "INFO"},
            "loggers": {"arq": {"handlers": ["out"], "level": "INFO"}},
        }
        """,
    )
    await enqueue(broker)
    command = ("arq", "worker.Settings", "--burst", "--custom-log-dict", "logs.LOGS")
    lines = await burst(mail.command(*command, WORKER_LOG="json", WORKER_UNKNOWN_FOR="0"))
    found = [json.loads(line) for line in lines]
    assert [line["job_id"] for line in found if line["message"] == "from arq's own logger"] == ["j1"]
    assert "from a thread\n" in (mail.folder / "app.log").read_text()


async def test_processes_log_json_with_their_names(mail: Project, broker: Broker) -> None:
    """The supervisor has none."""
    await enqueue(broker)
    command = ("worker", "run", "--burst", "--processes", "2")
    lines = await burst(mail.command(*command, WORKER_LOG="json", WORKER_UNKNOWN_FOR="0", WORKER_ID="w"))
    found = [json.loads(line) for line in lines]
    assert {line["worker"] for line in found if "job_id" in line} <= {"w-1", "w-2"}


async def test_a_wrong_format_is_refused_at_the_start(mail: Project) -> None:
    """In one line."""
    with mail.command("worker", "run", "--burst", WORKER_LOG="yaml") as worker:
        assert await worker.ends() == 2
        assert "WORKER_LOG='yaml' is not json or text. Example: WORKER_LOG=json" in worker.output

"""`tandem enqueue`: a job by hand, with arguments that the task's signature validates."""

import subprocess
from pathlib import Path

import pytest

from tests.worker.cli.test_cli import run
from worker import Broker
from worker.broker.keys import Keys
from worker.message import Message

TASKS = """\
from datetime import date

from worker import task


@task
async def count(number: int, label: str, names: list[str] | None = None, day: date | None = None) -> None: ...


@task(queue="mail")
async def send(to: str) -> None: ...
"""


class EnqueueCommand:
    """Runs the command in a project of two tasks."""

    def __init__(self, folder: Path, broker: Broker) -> None:
        self._folder = folder
        self._broker = broker

    def __call__(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return run("enqueue", *arguments, cwd=self._folder, **({"REDIS_URL": self._broker.url} | settings))

    async def message(self, job_id: str) -> Message:
        raw = await self._broker.connections.client.get(Keys.of("arq:queue").job(job_id))
        assert raw is not None
        return Message.decode(job_id, raw)

    async def waiting(self, queue: str) -> dict[str, float]:
        return {
            job_id.decode(): score
            for job_id, score in await self._broker.connections.client.zrange(queue, 0, -1, withscores=True)
        }


@pytest.fixture
def enqueue(tmp_path: Path, broker: Broker) -> EnqueueCommand:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/__init__.py").touch()
    (tmp_path / "tasks/jobs.py").write_text(TASKS)
    (tmp_path / "tasks/registry.py").write_text('TASKS = ("tasks.jobs.count", "tasks.jobs.send")\n')
    return EnqueueCommand(tmp_path, broker)


async def test_text_becomes_what_the_parameter_takes(enqueue: EnqueueCommand) -> None:
    """A number for an int, text for a str even if it looks like a number, JSON for a list, a date for a date."""
    done = enqueue(
        "count", "--arg", "number=7", "--arg", "label=12", "--arg", 'names=["a", "b"]', "--arg", "day=2030-01-31"
    )
    assert done.returncode == 0, done.stderr
    message = await enqueue.message(done.stdout.strip())
    assert message.kwargs == {"number": 7, "label": "12", "names": ["a", "b"], "day": "2030-01-31"}


async def test_json_gives_all_arguments_and_colon_equals_gives_one(enqueue: EnqueueCommand) -> None:
    done = enqueue("count", "--json", '{"number": 7, "label": "x"}', "--arg", "names:=null")
    assert done.returncode == 0, done.stderr
    assert (await enqueue.message(done.stdout.strip())).kwargs == {"number": 7, "label": "x", "names": None}


async def test_the_id_the_delay_and_the_queue_are_those_of_the_options(enqueue: EnqueueCommand) -> None:
    done = enqueue("send", "--arg", "to=ann", "--id", "r7", "--delay", "3600", "--queue", "post")
    assert (done.returncode, done.stdout) == (0, "r7\n")
    assert await enqueue.waiting("mail") == {}
    assert list(await enqueue.waiting("post")) == ["r7"]


async def test_an_id_that_is_taken_is_refused(enqueue: EnqueueCommand) -> None:
    """A second job of the id is not added, and the exit code says so."""
    assert enqueue("send", "--arg", "to=ann", "--id", "r7").returncode == 0
    again = enqueue("send", "--arg", "to=bob", "--id", "r7")
    assert (again.returncode, again.stdout) == (1, "")
    assert again.stderr == "r7: a job of this id waits or runs, or its result is kept\n"


def test_wrong_arguments_are_a_line_each_and_nothing_is_queued(enqueue: EnqueueCommand) -> None:
    done = enqueue("count", "--arg", "number=many", "--arg", "colour=red")
    assert (done.returncode, done.stdout) == (2, "")
    head, *problems = done.stderr.splitlines()
    assert head.startswith("count(number: int, label: str")
    assert sorted(problem.split(":")[0] for problem in problems) == ["- colour", "- label", "- number"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("sned",), "sned: the registry has no such task; did you mean send?"),
        (("send", "--arg", "to"), "send: --arg to: write NAME=VALUE, or NAME:=JSON"),
        (("send", "--arg", "to=a", "--arg", "to=b"), "send: --arg to is given twice"),
        (("send", "--json", "[1]"), 'send: --json takes an object. Example: {"order_id": 7}'),
        (("send", "--arg", "to=a", "--at", "noon"), "send: --at noon: write a time as in 2030-01-31T08:00:00+01:00"),
        (("send", "--arg", "to=a", "--at", "2030-01-31T08:00:00"), "zone"),
    ],
)
def test_a_mistake_is_one_line(enqueue: EnqueueCommand, arguments: tuple[str, ...], line: str) -> None:
    done = enqueue(*arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_redis_that_does_not_answer_is_one_line(enqueue: EnqueueCommand) -> None:
    done = enqueue("send", "--arg", "to=a", REDIS_URL="redis://127.0.0.1:1")
    assert done.returncode == 1
    assert done.stderr.startswith("REDIS_URL: no answer (")
    assert done.stderr.count("\n") == 1

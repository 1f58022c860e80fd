"""`tandem queues`, `tandem top` and `tandem audit`: what they show and do on real servers."""

import asyncio
import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.servers import Observer
from tests.waiting import eventually
from tests.worker.cli.test_cli import MAIL, run
from tests.worker.engine.conftest import StartWorker
from worker import Broker, task
from worker.broker.records import now_ms
from worker.broker.served_queues import ServedQueues
from worker.message import encode
from worker.new_job import NewJob


class Command:
    """Runs commands on this test's servers."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self._folder = folder
        self._settings = settings

    async def __call__(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        return await asyncio.to_thread(run, *arguments, cwd=self._folder, **(self._settings | settings))

    async def queue(self, name: str) -> dict[str, Any]:
        """A queue, as ``queues list --json`` shows it."""
        done = await self("queues", "list", "--queues", name, "--json")
        assert done.returncode == 0, done.stderr
        (found,) = [queue for queue in json.loads(done.stdout) if queue["name"] == name]
        return dict(found)


@pytest.fixture
def command(tmp_path: Path, database_url: str, redis_url: str, postgres: Observer) -> Command:
    return Command(tmp_path, {"DATABASE_URL": database_url, "REDIS_URL": redis_url})


async def enqueue(broker: Broker, queue: str, count: int) -> None:
    await broker.enqueue(
        [
            NewJob(f"{queue}-{number}", encode("send", b"{}", now_ms()), "send", queue, now_ms(), None, 0, None)
            for number in range(count)
        ]
    )


class TestQueues:
    async def test_the_list_has_the_jobs_and_the_state_of_each_queue(self, command: Command, broker: Broker) -> None:
        """As a table, too: one line for each queue."""
        await enqueue(broker, "mail", 3)
        queue = await command.queue("mail")
        assert (queue["depth"], queue["due"], queue["workers"], queue["state"]) == (3, 3, 0, "active")
        shown = await command("queues", "list", "--queues", "mail,news")
        head, mail, news = shown.stdout.splitlines()
        assert head.split() == ["queue", "state", "jobs", "due", "oldest", "due", "later", "workers"]
        assert mail.split()[:4] == ["mail", "active", "3", "3"]
        assert news.split()[:4] == ["news", "active", "0", "0"]

    async def test_a_queue_is_paused_until_it_is_resumed(self, command: Command) -> None:
        """The line says how to end the pause."""
        paused = await command("queues", "pause", "mail")
        assert (paused.returncode, paused.stdout) == (0, "mail is paused: tandem queues resume mail\n")
        assert (await command.queue("mail"))["state"] == "paused"
        assert (await command("queues", "resume", "mail")).stdout == "mail is active again\n"
        assert (await command.queue("mail"))["state"] == "active"

    async def test_a_pause_ends_by_itself_at_the_given_time(self, command: Command) -> None:
        assert (await command("queues", "pause", "mail", "--until", "2h")).returncode == 0
        until = datetime.fromisoformat((await command.queue("mail"))["pause"]["until"])
        assert timedelta(minutes=119) < until - datetime.now(UTC) <= timedelta(hours=2)

    async def test_a_drained_queue_is_shown_as_draining(self, command: Command, broker: Broker) -> None:
        await enqueue(broker, "mail", 1)
        assert (await command("queues", "drain", "mail")).stdout.startswith("mail is draining")
        assert (await command.queue("mail"))["state"] == "draining"

    async def test_a_purge_removes_what_waits(self, command: Command, broker: Broker) -> None:
        await enqueue(broker, "mail", 3)
        purged = await command("queues", "purge", "mail", "--yes")
        assert (purged.returncode, purged.stdout) == (0, "3 purged\n")
        assert (await command.queue("mail"))["depth"] == 0

    async def test_a_purge_without_a_terminal_wants_yes(self, command: Command, broker: Broker) -> None:
        """Nothing is removed."""
        await enqueue(broker, "mail", 3)
        refused = await command("queues", "purge", "mail")
        assert (refused.returncode, refused.stderr) == (2, "stdin is not a terminal: pass --yes to purge 3 jobs\n")
        assert (await command.queue("mail"))["depth"] == 3

    async def test_resuming_a_queue_that_is_not_paused_says_so(self, command: Command) -> None:
        done = await command("queues", "resume", "mail")
        assert (done.returncode, done.stderr) == (
            1,
            "mail is not paused; 'tandem queues list' shows which queues are\n",
        )

    @pytest.mark.parametrize("text", ["soon", "30", "2030-13-01"])
    async def test_a_time_that_cannot_be_read_is_one_line(self, command: Command, text: str) -> None:
        done = await command("queues", "pause", "mail", "--until", text)
        assert done.returncode == 2
        assert done.stderr == f"--until {text}: write a length as 30m or 2h, or a time as 2030-01-31T08:00+01:00\n"

    async def test_a_redis_that_does_not_answer_is_one_line(self, command: Command) -> None:
        done = await command("queues", "list", REDIS_URL="redis://127.0.0.1:1")
        assert done.returncode == 1
        assert done.stderr.startswith("REDIS_URL: no answer (")
        assert done.stderr.count("\n") == 1


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project whose task `send` has the queue `mail`."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/__init__.py").touch()
    (tmp_path / "tasks/mail.py").write_text(MAIL)
    (tmp_path / "tasks/registry.py").write_text('TASKS = ("tasks.mail.send", "tasks.mail.clean_up")\n')
    return tmp_path


@pytest.mark.usefixtures("project")
class TestQueuesOfTasks:
    """A task may name a queue that is not in WORKER_QUEUES, and that no worker serves."""

    async def test_the_queues_of_the_registrys_tasks_are_listed_and_searched(self, command: Command) -> None:
        """`queues list`, `top` and `jobs why` find a job that waits there."""
        enqueued = await command("enqueue", "send", "--arg", "order=7")
        job_id = enqueued.stdout.strip()
        listed = json.loads((await command("queues", "list", "--json")).stdout)
        assert [(queue["name"], queue["depth"]) for queue in listed] == [("arq:queue", 0), ("mail", 1)]
        shown = json.loads((await command("top", "--json")).stdout)
        assert [queue["name"] for queue in shown["queues"]] == ["arq:queue", "mail"]
        reason = json.loads((await command("jobs", "why", job_id, "--json")).stdout)
        assert (reason["kind"], reason["queue"]) == ("no_worker", "mail")

    async def test_queues_that_are_named_are_all_that_is_listed(self, command: Command) -> None:
        listed = await command("queues", "list", "--json", WORKER_QUEUES="arq:queue")
        assert [queue["name"] for queue in json.loads(listed.stdout)] == ["arq:queue"]


class TestQueuesOfWorkers:
    """A worker may serve a queue that no setting and no task of this process names."""

    async def test_the_queue_of_a_running_worker_is_listed_with_its_worker(
        self, command: Command, start: StartWorker
    ) -> None:
        """`queues list`, `top` and `workers` know it from the worker's record."""
        async with start(clean_up, queues="bulk"):
            await eventually(lambda: is_listed(command, "bulk", workers=1))
            shown = json.loads((await command("top", "--json")).stdout)
            assert "bulk" in [queue["name"] for queue in shown["queues"]]
            listed = json.loads((await command("workers", "--json")).stdout)
            assert [worker["queues"] for worker in listed] == [["bulk"]]

    async def test_a_queue_whose_workers_are_gone_is_listed_while_it_has_jobs(
        self, command: Command, broker: Broker
    ) -> None:
        """An operator looks for exactly these jobs. An empty queue is no longer of interest."""
        await ServedQueues(broker.connections).record(["bulk", "empty"])
        await enqueue(broker, "bulk", 1)
        listed = json.loads((await command("queues", "list", "--json")).stdout)
        assert [(queue["name"], queue["depth"]) for queue in listed] == [("arq:queue", 0), ("bulk", 1)]

    async def test_a_served_queue_is_not_listed_where_the_queues_are_named(
        self, command: Command, broker: Broker
    ) -> None:
        """Several services on one Redis name theirs in WORKER_QUEUES."""
        await ServedQueues(broker.connections).record(["bulk"])
        await enqueue(broker, "bulk", 1)
        listed = await command("queues", "list", "--json", WORKER_QUEUES="arq:queue")
        assert [queue["name"] for queue in json.loads(listed.stdout)] == ["arq:queue"]


async def is_listed(command: Command, name: str, *, workers: int) -> bool:
    listed = json.loads((await command("queues", "list", "--json")).stdout)
    return (name, workers) in [(queue["name"], queue["workers"]) for queue in listed]


@task
async def clean_up() -> None: ...


class TestTop:
    async def test_top_shows_each_queue_once_where_output_is_not_a_terminal(
        self, command: Command, broker: Broker
    ) -> None:
        await enqueue(broker, "mail", 3)
        shown = await command("top", "--queues", "mail")
        assert shown.returncode == 0, shown.stderr
        assert "3 in queues" in shown.stdout
        assert any(line.split()[:4] == ["mail", "active", "3", "3"] for line in shown.stdout.splitlines())
        assert "no worker" in shown.stdout

    async def test_top_prints_json(self, command: Command, broker: Broker) -> None:
        await enqueue(broker, "mail", 3)
        data = json.loads((await command("top", "--queues", "mail", "--json")).stdout)
        assert data["workers"] == []
        assert (data["queues"][0]["name"], data["queues"][0]["due"]) == ("mail", 3)

"""A fault drill: a new user's project, its run with servers of its own, and seven jobs that do not run.

For each the command line (``jobs why --json``) and the job's page of the dashboard give the same reason, and the next
step works.
"""

import asyncio
import html
import json
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.commands import Command, bare_environment
from tests.waiting import eventually

_TASKS = """
import asyncio, os, signal
from pathlib import Path

from worker import task


@task
async def send(to: str) -> str:
    return f"sent to {to}"


@task(queue="reports")
async def report() -> None: ...


@task(queue="reports")
async def hold_report(file: str) -> None:
    Path(file).touch()
    await asyncio.sleep(600)


@task
async def hold(file: str) -> None:
    Path(file).touch()
    await asyncio.sleep(600)


@task(queue="poison")
async def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
"""
_UNKNOWN = """
import asyncio

from worker import default_broker, task


@task
async def forgotten() -> None: ...


async def main() -> None:
    print((await forgotten.enqueue()).job_id)
    await default_broker().close()


asyncio.run(main())
"""
_UNPUBLISHED = """
import asyncio

import db
from db.database import default_database
from tasks.mail import send
from worker import Broker


async def main() -> None:
    broker = Broker("redis://127.0.0.1:1", default=True)  # as Redis is away after the COMMIT
    async with db.scope():
        job = await send.using(delay=3600).enqueue("ann")
    print(job.job_id)
    await broker.close()
    await default_database().dispose()


asyncio.run(main())
"""
_SENTENCE = re.compile(r'<p class="sentence">(.*?)\.</p>', re.DOTALL)
_NEXT = re.compile(r'<p class="next">(.*?)</p>', re.DOTALL)


class Drill:
    """A user at a shell in the project's folder, and a browser on the dashboard."""

    def __init__(self, folder: Path, settings: dict[str, str], page: httpx.AsyncClient) -> None:
        self.folder = folder
        self.settings = settings
        self._page = page

    async def __call__(self, *command: str, exit_code: int = 0, **settings: str) -> str:
        """What ``tandem`` prints."""
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", *command],
            cwd=self.folder,
            env=bare_environment(**(self.settings | settings)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == exit_code, done.stdout + done.stderr
        return done.stdout.strip()

    async def tandem(self, *command: str, **settings: str) -> str:
        return await self("worker", *command, **settings)

    async def enqueue(self, *arguments: str) -> str:
        return await self.tandem("enqueue", *arguments)

    async def script(self, source: str) -> str:
        file = self.folder / "script.py"
        file.write_text(source)
        return await self("script")

    def worker(self, **settings: str) -> Command:
        return Command("worker", "run", folder=self.folder, environment=self.settings | settings)

    async def type(self, next_step: str) -> None:
        """Type the command of a next step."""
        program, *command = shlex.split(next_step[next_step.index("tandem ") :])
        assert program == "tandem"
        await self.tandem(*command)

    async def why(self, job_id: str, kind: str) -> dict[str, Any]:
        """The reason, once it is of this kind: from the terminal, and the same from the page."""
        asked: list[dict[str, Any]] = []

        async def is_kind() -> bool:
            asked.append(json.loads(await self.tandem("jobs", "why", job_id, "--json")))
            return asked[-1]["kind"] == kind

        await eventually(is_kind, timeout=15)
        reason = asked[-1]
        sentence, next_step = await self.shown(job_id)
        assert _without_times(sentence) == _without_times(reason["sentence"])
        assert _without_times(next_step) == _without_times(reason["next_step"])
        return reason

    async def shown(self, job_id: str) -> tuple[str, str]:
        """The sentence and the next step of the job's page."""
        response = await self._page.get("/job", params={"id": job_id})
        assert response.status_code == 200, response.text
        sentence, next_step = _SENTENCE.search(response.text), _NEXT.search(response.text)
        assert sentence is not None
        return html.unescape(sentence[1]), "" if next_step is None else html.unescape(next_step[1])


def _without_times(text: str) -> str:
    """The text in small letters, as the page begins it with a capital, and without times."""
    return re.sub(r"\d\d:\d\d:\d\d", "", text).lower()


@pytest.fixture
async def drill(tmp_path: Path) -> AsyncIterator[Drill]:
    """``tandem run`` with two slots and servers of its own, and ``tandem dashboard`` beside it."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/__init__.py").touch()
    (tmp_path / "tasks/mail.py").write_text(_TASKS)
    names = ", ".join(f'"tasks.mail.{name}"' for name in ("send", "report", "hold", "kill"))
    (tmp_path / "tasks/registry.py").write_text(f"TASKS = ({names})\n")
    with ExitStack() as started:
        run = Command("worker", "run", folder=tmp_path, environment={"WORKER_ID": "first", "WORKER_CONCURRENCY": "2"})
        await started.enter_context(run).says("works on")
        settings = await _urls(tmp_path)
        serving = ("worker", "dashboard", "--loopback-only", "--port", "0")
        board = started.enter_context(Command(*serving, folder=tmp_path, environment=settings))
        address = re.search(r"http://\S+", await board.says("Ctrl-C ends it"))
        assert address is not None
        async with httpx.AsyncClient(base_url=address[0], timeout=20) as page:
            yield Drill(tmp_path, settings, page)


async def _urls(folder: Path) -> dict[str, str]:
    """What ``eval $(tandem env)`` sets."""
    shell = [sys.executable, "-m", "worker", "env"]
    done = await asyncio.to_thread(
        subprocess.run, shell, cwd=folder, env=bare_environment(), capture_output=True, text=True, check=True
    )
    name_and_url = (word.split("=", 1) for word in shlex.split(done.stdout)[1:])
    return dict(name_and_url)


async def test_each_fault_has_its_reason_in_the_terminal_and_on_the_page(drill: Drill) -> None:
    """And the next step, typed as it is written, does what it says."""
    await _not_published(drill, await drill.script(_UNPUBLISHED))
    await _unknown_task(drill, await drill.script(_UNKNOWN))
    unserved = await drill.enqueue("report")
    for slot in range(2):
        await drill.enqueue("hold", "--arg", f"file={drill.folder / str(slot)}")
    for slot in range(2):
        await eventually((drill.folder / str(slot)).exists)
    behind = await drill.enqueue("send", "--arg", "to=ann")
    await _full_pool_and_pause(drill, behind)
    await _no_worker_and_its_death(drill, unserved)
    await _poison(drill)


async def _unknown_task(drill: Drill, job_id: str) -> None:
    reason = await drill.why(job_id, "unknown_task")
    assert reason["sentence"] == "no worker of its queue arq:queue knows the task forgotten"
    assert reason["next_step"].startswith("start a worker that lists forgotten in TASKS")


async def _not_published(drill: Drill, job_id: str) -> None:
    """It is due in an hour. The next step publishes it now."""
    reason = await drill.why(job_id, "not_published")
    await drill.type(reason["next_step"])
    assert json.loads((await drill.tandem("jobs", "watch", job_id, "--json")).splitlines()[-1])["state"] == "done"


async def _full_pool_and_pause(drill: Drill, job_id: str) -> None:
    reason = await drill.why(job_id, "slots_taken")
    assert reason["sentence"].startswith("all 2 slots of the workers of its queue arq:queue are taken, the longest by")
    assert {job["task"] for job in reason["evidence"]["jobs"]} == {"hold"}

    await drill.tandem("queues", "pause", "arq:queue")
    reason = await drill.why(job_id, "paused")
    doctor = json.loads(await drill.tandem("doctor", "--json"))
    assert reason["next_step"] in [finding["fix"] for finding in doctor]
    await drill.type(reason["next_step"])
    await drill.why(job_id, "slots_taken")


async def _no_worker_and_its_death(drill: Drill, job_id: str) -> None:
    """The next step starts a worker of the queue. Then it dies, and nobody gives back its job before its lease ends."""
    reason = await drill.why(job_id, "no_worker")
    assert reason["next_step"] == "start one: WORKER_QUEUES=reports python -m worker run"
    settings = {"WORKER_QUEUES": "reports", "WORKER_LEASE": "120", "WORKER_ID": "second"}
    with drill.worker(**settings) as second:
        assert json.loads((await drill.tandem("jobs", "watch", job_id, "--json")).splitlines()[-1])["state"] == "done"
        held = await drill.enqueue("hold_report", "--arg", f"file={drill.folder / 'held'}")
        await eventually((drill.folder / "held").exists)
        worker = psutil.Process(second.pid)
        worker.suspend()
        for keeper in worker.children(recursive=True):
            keeper.kill()
        second.send(signal.SIGKILL)
        await second.ends()
        reason = await drill.why(held, "worker_died")
        assert "does not renew its lease" in reason["sentence"]


async def _poison(drill: Drill) -> None:
    """It has killed two workers, and no worker is left. The next step ends it."""
    job_id = await drill.enqueue("kill")
    for number in range(2):
        with drill.worker(WORKER_QUEUES="poison", WORKER_ID=f"victim {number}") as victim:
            assert await victim.ends() == -signal.SIGKILL
            await victim.says("gave back 1 of its 1 jobs")
    reason = await drill.why(job_id, "suspect")
    assert reason["sentence"].startswith("2 workers have died while they ran it")
    await drill.type(reason["next_step"].partition(";")[0])
    await drill.why(job_id, "aborted")

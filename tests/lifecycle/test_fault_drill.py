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
_ENQUEUE = """
import asyncio, json, sys
from pathlib import Path

import db
from db.database import default_database
from tasks.mail import hold, hold_report, kill, report, send
from worker import Broker, default_broker, task


@task
async def forgotten() -> None: ...


async def main() -> None:
    slots = [Path(sys.argv[1]) / name for name in ("first slot", "second slot")]
    for slot in slots:
        await hold.enqueue(str(slot))
    while not all(slot.exists() for slot in slots):
        await asyncio.sleep(0.05)
    jobs = {
        "behind": await send.enqueue("ann"),
        "unknown": await forgotten.enqueue(),
        "unserved": await report.enqueue(),
        "held": await hold_report.enqueue(sys.argv[1] + "/held"),
        "poison": await kill.enqueue(),
    }
    await default_broker().close()
    away = Broker("redis://127.0.0.1:1", default=True)  # Redis is away after the COMMIT
    async with db.scope():
        jobs["unpublished"] = await send.using(delay=3600).enqueue("bob")
    print(json.dumps({name: job.job_id for name, job in jobs.items()}))
    await away.close()
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

    async def python(self, *arguments: str) -> str:
        """What ``python`` prints."""
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, *arguments],
            cwd=self.folder,
            env=bare_environment(**self.settings),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    async def tandem(self, *command: str) -> str:
        return await self.python("-m", "worker", *command)

    async def type(self, next_step: str) -> None:
        """Type the command of a next step."""
        program, *command = shlex.split(next_step[next_step.index("tandem ") :])
        assert program == "tandem"
        await self.tandem(*command)

    def worker(self, **settings: str) -> Command:
        return Command("worker", "run", folder=self.folder, environment=self.settings | settings)

    async def why(self, job_id: str, kind: str, sentence: str) -> str:
        """Wait until the job's page has the reason. Ask the command line for the same one; return its next step."""
        on_page = await self.page_says(job_id, sentence)
        reason = json.loads(await self.tandem("jobs", "why", job_id, "--json"))
        assert reason["kind"] == kind
        assert tuple(map(_comparable, on_page)) == (
            _comparable(reason["sentence"]),
            _comparable(reason["next_step"]),
        )
        return str(reason["next_step"])

    async def page_says(self, job_id: str, sentence: str) -> tuple[str, str]:
        """Wait until the sentence on the job's page begins like this; the sentence and the next step."""

        async def says() -> tuple[str, str] | None:
            shown = await self.shown(job_id)
            return shown if shown[0].lower().startswith(sentence) else None

        found: tuple[str, str] = await eventually(says, timeout=30, every=0.1)
        return found

    async def state(self, job_id: str) -> str:
        """The state on the job's page."""
        page = (await self._page.get("/job", params={"id": job_id})).text
        title = re.search(r'id="live-state".*?</p>', page, re.DOTALL)
        if title is None:
            return ""  # a job without a row is known again when its worker has counted it, within a second
        return re.sub(r"<[^>]+>", " ", title[0].partition(">")[2]).split()[0]

    async def shown(self, job_id: str) -> tuple[str, str]:
        """The sentence and the next step of the job's page."""
        response = await self._page.get("/job", params={"id": job_id})
        assert response.status_code == 200, response.text
        sentence, next_step = _SENTENCE.search(response.text), _NEXT.search(response.text)
        if sentence is None:
            return "", ""  # it has ended
        return html.unescape(sentence[1]), "" if next_step is None else html.unescape(next_step[1])


def _comparable(text: str) -> str:
    """The text in small letters, as the page begins it with a capital, and without times."""
    return re.sub(r"\d\d:\d\d:\d\d", "", text).lower()


@pytest.fixture
async def drill(tmp_path: Path) -> AsyncIterator[Drill]:
    """``tandem run`` with two slots and servers of its own, and ``tandem dashboard`` beside it."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/__init__.py").touch()
    (tmp_path / "tasks/mail.py").write_text(_TASKS)
    names = ", ".join(f'"tasks.mail.{name}"' for name in ("send", "report", "hold", "hold_report", "kill"))
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
    (drill.folder / "produce.py").write_text(_ENQUEUE)
    jobs = json.loads(await drill.python("produce.py", str(drill.folder)))
    await _unpublished_row(drill, jobs["unpublished"])
    await drill.why(jobs["unknown"], "unknown_task", "no worker of its queue arq:queue knows the task forgotten")
    await _full_pool_and_pause(drill, jobs["behind"])
    await _no_worker_and_its_death(drill, jobs["unserved"], jobs["held"])
    await _poison(drill, jobs["poison"])


async def _unpublished_row(drill: Drill, job_id: str) -> None:
    """It is due in an hour. The next step publishes it now."""
    next_step = await drill.why(job_id, "not_published", "its row is committed, and the job is not in redis yet")
    await drill.type(next_step)
    await drill.page_says(job_id, "2 due jobs come before it in its queue arq:queue")


async def _full_pool_and_pause(drill: Drill, job_id: str) -> None:
    """The next step of a pause resumes the queue."""
    full = "all 2 slots of the workers of its queue arq:queue are taken, the longest by job "
    await drill.why(job_id, "slots_taken", full)
    await drill.tandem("queues", "pause", "arq:queue")
    await drill.type(await drill.why(job_id, "paused", "its queue arq:queue is paused since "))
    await drill.page_says(job_id, full)


async def _no_worker_and_its_death(drill: Drill, job_id: str, held: str) -> None:
    """The next step starts a worker of the queue. When it dies with its keeper, its lease is left."""
    next_step = await drill.why(job_id, "no_worker", "no worker serves its queue reports")
    assert next_step == "start one: WORKER_QUEUES=reports python -m worker run"
    with drill.worker(WORKER_QUEUES="reports", WORKER_LEASE="120", WORKER_ID="second") as second:
        await eventually((drill.folder / "held").exists, timeout=30)
        await eventually(lambda: drill.state(job_id), equals="done", every=0.1)
        await drill.page_says(held, "worker second runs it since ")  # it has said so, once a second
        worker = psutil.Process(second.pid)
        worker.suspend()
        for keeper in worker.children(recursive=True):
            keeper.kill()
        second.send(signal.SIGKILL)
        await second.ends()
        await drill.why(held, "worker_died", "worker second does not renew its lease, so it has died or stands still")


async def _poison(drill: Drill, job_id: str) -> None:
    """It has killed two workers, and no worker is left. The next step aborts it."""
    for name in ("victim", "another victim"):
        with drill.worker(WORKER_QUEUES="poison", WORKER_ID=name) as victim:
            assert await victim.ends() == -signal.SIGKILL
            await eventually(lambda: "gave back 1 of its 1 job" in victim.output)
    next_step = await drill.why(job_id, "suspect", "2 workers have died while they ran it")
    await drill.type(next_step.partition(";")[0])
    await drill.page_says(job_id, "an abort was requested")

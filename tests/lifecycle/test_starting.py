"""A worker that gets a signal while it starts exits with 0 within seconds and has claimed no job."""

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

import worker
from tests.commands import Command, bare_environment
from tests.lifecycle.conftest import Project
from tests.stopwatch import Stopwatch
from tests.test_compose import image_command
from tests.waiting import eventually
from worker import task

MAIL = """
import asyncio, os, time
from contextlib import asynccontextmanager
from pathlib import Path
from worker import task

def comes_to(moment):
    if os.environ.get("MOMENT") != moment:
        return False
    Path("reached").touch()
    return True

if comes_to("import"):
    time.sleep(60)

if comes_to("swallowed import"):
    try:
        time.sleep(60)
    except BaseException:
        time.sleep(60)

@task
async def send(to: str) -> None: ...

@asynccontextmanager
async def lifespan():
    try:
        if comes_to("lifespan"):
            await asyncio.sleep(60)
        if comes_to("blocked lifespan"):
            time.sleep(60)
        if comes_to("lifespan in a thread"):
            await asyncio.to_thread(time.sleep, 60)
        if comes_to("swallowed lifespan"):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass
        if comes_to("broken lifespan"):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise RuntimeError("could not start")
        yield {}
    finally:
        Path("left").touch()
"""

RUN, ARQ = ("worker", "run"), ("arq", "worker.Settings")


@task
async def send(to: str) -> None: ...


@pytest.fixture
async def starting(project: Project, broker: worker.Broker) -> AsyncIterator[Project]:
    """A project that pauses while it starts, at the moment `MOMENT`. Its job must stay in the queue."""
    project.write("tasks/mail.py", MAIL)
    project.write("tasks/registry.py", 'TASKS = ("tasks.mail.send",)\nLIFESPAN = "tasks.mail.lifespan"')
    job = await send.enqueue("you")
    yield project
    assert await job.status() == worker.JobStatus.queued
    assert await broker.depth("arq:queue") == 1


def reached(project: Project, name: str = "reached") -> bool:
    return (project.folder / name).exists()


async def assert_sigterm_ends(process: Command) -> None:
    """Send a SIGTERM: the process ends with exit code 0 within ten seconds."""
    watch = Stopwatch()
    process.send(signal.SIGTERM)
    assert await process.ends() == 0
    assert watch.seconds < 10


@pytest.mark.parametrize("command", [RUN, ARQ], ids=["run", "arq"])
@pytest.mark.parametrize("moment", ["import", "lifespan", "swallowed lifespan", "broken lifespan"])
async def test_sigterm_while_starting_ends_the_worker_and_leaves_its_lifespan(
    starting: Project, command: tuple[str, ...], moment: str
) -> None:
    """The code that runs is interrupted, and a lifespan that was entered is left."""
    with starting.command(*command, MOMENT=moment) as process:
        await eventually(lambda: reached(starting), timeout=60)
        await assert_sigterm_ends(process)
        assert "Traceback" not in process.output or moment == "broken lifespan"
    assert reached(starting, "left") is (moment != "import")


@pytest.mark.parametrize(
    ("command", "moment"),
    [(RUN, "swallowed import"), (ARQ, "blocked lifespan"), (RUN, "blocked lifespan"), (RUN, "lifespan in a thread")],
)
async def test_sigterm_ends_a_worker_whose_starting_code_cannot_be_interrupted(
    starting: Project, command: tuple[str, ...], moment: str
) -> None:
    """The code blocks, or swallows the exception that would end it."""
    with starting.command(*command, MOMENT=moment) as process:
        await eventually(lambda: reached(starting), timeout=60)
        await assert_sigterm_ends(process)


@pytest.mark.parametrize("command", [RUN, ARQ], ids=["run", "arq"])
@pytest.mark.parametrize("server", ["redis", "database"])
async def test_sigterm_ends_a_worker_that_waits_for_a_silent_server(
    starting: Project, command: tuple[str, ...], server: str
) -> None:
    """The worker does not wait for the server any longer."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        silent.settimeout(60)
        url = f"redis://127.0.0.1:{port}" if server == "redis" else f"postgresql+asyncpg://nobody@127.0.0.1:{port}/none"
        with starting.command(*command, **{f"{server.upper()}_URL": url}) as process:
            connection, _ = await asyncio.to_thread(silent.accept)
            with connection:
                await assert_sigterm_ends(process)
                assert "Traceback" not in process.output


ARQS = Path(sys.executable).with_name("arq")
CONTAINED = ("unshare", "--fork", "--pid", "--mount-proc", "--kill-child")


def can_contain() -> bool:
    """Whether this account may start a process in a new process namespace."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*CONTAINED, "true"], check=False, capture_output=True).returncode == 0


@contextmanager
def contained(project: Project, log: Path, **settings: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the image's command in a process namespace of its own."""
    command = (str(ARQS) if word == "arq" else word for word in image_command())
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*CONTAINED, *command],
            cwd=project.folder,
            env=bare_environment(**project.settings, **settings),
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(not can_contain(), reason="no process namespaces for this account")
@pytest.mark.parametrize("moment", ["", "import", "lifespan"])
async def test_sigterm_ends_a_starting_worker_that_is_process_1_of_a_container(
    starting: Project, tmp_path: Path, moment: str
) -> None:
    """The image's command reacts to a signal from its start on, without an init process."""
    log = tmp_path / "log"
    with contained(starting, log, MOMENT=moment) as process:
        outside = psutil.Process(process.pid)
        await eventually(outside.children)
        (first,) = outside.children()
        if moment:
            await eventually(lambda: reached(starting), timeout=60)
        else:  # Python starts, before it imports anything of the project
            await eventually(lambda: first.cmdline()[1:2] == [str(ARQS)])
        first.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0, log.read_text()

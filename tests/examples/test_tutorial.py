"""docs/tutorial.md, as its reader follows it: every command and every file, in its order, in an empty folder."""

import html
import os
import re
import shutil
import socket
import sys
import sysconfig
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import pytest

from tests.chromium import chromium, launched
from tests.examples.terminals import Terminal, blocks, is_endless, is_shown
from tests.packaging.conftest import wheel
from tests.waiting import eventually

__all__ = ["wheel"]

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "tutorial.md").read_text()
PICTURE = "tutorial-failure.png"
SYSTEM = "/usr/bin:/bin"  # not the path of the tests, which leads to the checkout
DASHBOARD = "http://127.0.0.1:9181"
_RETRY = re.compile(r'<form method="post" action="(/job/act)">(.*?)</form>', re.DOTALL)
_FIELD = re.compile(r'<input type="hidden" name="([^"]*)" value="([^"]*)">')


class Reader:
    """Follows the page in a folder of their own.

    What the reader has instead of a package index: the wheel, and links to the packages that it needs.
    """

    def __init__(self, folder: Path, wheel: Path, terminals: ExitStack) -> None:
        self.folder = folder / "shop"
        self.folder.mkdir()
        self._wheel = wheel
        self._packages = _packages(folder / "packages")
        self._terminals = terminals
        self._environment = {
            "PATH": f"{_python(folder / 'bin')}:{SYSTEM}",
            "HOME": str(folder),
            "PIP_NO_INDEX": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        }
        self.terminal = self._open()

    def _open(self) -> Terminal:
        return self._terminals.enter_context(Terminal(self.folder, self._environment))

    def save(self, name: str, text: str) -> None:
        file = self.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    async def type(self, command: str, shown: str) -> None:
        """Type a command, in another terminal if it is the first one of a new shell."""
        if command == ". .venv/bin/activate" and (self.folder / "models.py").exists():
            self._idle = None if self.terminal.is_busy else self.terminal
            self.terminal = self._open()
        elif self.terminal.is_busy:
            assert self._idle is not None, f"in which terminal? {command}"
            self.terminal = self._idle
        await self.terminal.type(command.replace("tandem-jobs[", f"{self._wheel}["), shown)
        if command.startswith("python3 -m venv"):
            (packages,) = self.folder.glob(".venv/lib/python*/site-packages")
            (packages / "needs.pth").write_text(f"{self._packages}\n")
        if command.startswith("pip install"):
            self._add_programs("uvicorn", "pytest")

    def _add_programs(self, *names: str) -> None:
        """Programs of packages that pip has found installed."""
        for name in names:
            _, _, code = Path(sys.executable).with_name(name).read_text().partition("\n")
            program = self.folder / ".venv" / "bin" / name
            program.write_text(f"#!{program.with_name('python')}\n{code}")
            program.chmod(0o755)


def _packages(folder: Path) -> Path:
    """A folder with the packages of the tests' environment, without Tandem's checkout."""
    folder.mkdir()
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith(("tandem", "_editable_impl_tandem", "pip")):
            (folder / package.name).symlink_to(package)
    return folder


def _python(folder: Path) -> Path:
    """A folder with the `python3` that the tests run on."""
    folder.mkdir()
    (folder / "python3").symlink_to(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
    return folder


def _is_free(port: int) -> bool:
    with closing(socket.socket()) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


async def _look_at_the_failure(folder: Path) -> str:
    """Open the failed job in the dashboard, and take its picture; the address of the job's page."""
    async with httpx.AsyncClient(base_url=DASHBOARD) as client:
        failures = (await client.get("/failures")).text
        assert "ValueError: a piano does not fit into a parcel" in failures
        assert "1 failed job in 1 group." in failures
        job = html.unescape(re.findall(r'href="(/job\?[^"]*)"', failures)[0])
        page = (await client.get(job)).text
        assert "Traceback" in page
        assert "order_id" in page
    if (path := chromium()) is not None:
        picture = folder / PICTURE
        async with launched(path) as browser:
            shown = await browser.new_page(viewport={"width": 1200, "height": 800})
            await shown.goto(DASHBOARD + "/failures")
            await shown.click("tbody a[href^='/job?']")
            await shown.wait_for_selector("text=Traceback")
            await shown.screenshot(path=picture)
        assert picture.stat().st_size > 10_000
        if "PICTURES" in os.environ:  # as `make pictures`
            shutil.copy(picture, os.environ["PICTURES"])
    return job


async def _press_retry(job: str) -> None:
    """Press the button on the job's page, and see that the job is done."""
    async with httpx.AsyncClient(base_url=DASHBOARD) as client:
        form = _RETRY.search((await client.get(job)).text)
        assert form is not None
        assert ">Retry</button>" in form[2]
        fields = {name: html.unescape(value) for name, value in _FIELD.findall(form[2])}
        pressed = await client.post(form[1], data=fields, headers={"Sec-Fetch-Site": "same-origin"})
        assert pressed.status_code < 400, pressed.text
        await eventually(lambda: _is_done(client, job), timeout=60)


def _has_restarted(worker: Terminal, before: int) -> bool:
    _, _, after = worker.output[before:].partition("tasks/shop.py changed: restarting the worker")
    return "works on arq:queue" in after


async def _is_done(client: httpx.AsyncClient, job: str) -> bool:
    return "1 lorry with piano" in (await client.get(job)).text


@pytest.mark.skipif(shutil.which("curl", path=SYSTEM) is None, reason="no curl on this machine: apt-get install curl")
async def test_a_reader_who_types_what_the_tutorial_says_sees_what_it_shows(tmp_path: Path, wheel: Path) -> None:
    """From an empty folder and the wheel to a committed job, a failed one in the dashboard, and a test."""
    for port in (8000, 9181):
        await eventually(partial(_is_free, port), timeout=120)
    job, corrected = "", False
    with TemporaryDirectory(prefix="reader-") as folder, ExitStack() as terminals:
        reader = Reader(Path(folder), wheel, terminals)
        worker = reader.terminal
        for block in blocks(PAGE):
            if block.language == "console":
                for command, shown in block.commands:
                    await reader.type(command, shown)
                    if command.startswith("tandem run"):
                        worker = reader.terminal
                    if command.startswith("tandem dashboard"):
                        job = await _look_at_the_failure(tmp_path)
            else:
                assert block.language in ("python", "ini")
                before = len(worker.output)
                reader.save(*block.file)
                if job and not corrected:
                    corrected = True
                    await eventually(partial(_has_restarted, worker, before), timeout=60)
                    await _press_retry(job)
        assert [*reader.folder.glob(".venv/lib/python*/site-packages/db/scope.py")]  # what ran is the wheel
    assert corrected


def test_the_tutorial_opens_four_terminals_and_its_picture_exists() -> None:
    """As its beginning says."""
    commands = [command for block in blocks(PAGE) if block.language == "console" for command, _ in block.commands]
    assert sum(map(is_endless, commands)) == 3
    assert commands.count(". .venv/bin/activate") == 4
    assert (PROJECT / "docs" / "pictures" / PICTURE).is_file()


def test_output_is_compared_line_by_line_with_wildcards() -> None:
    """A changed line is seen."""
    assert is_shown("a...\nd", "x\nabc  \nd\n")
    assert is_shown("...\n1 job", "id  task\n1 job\n")
    assert not is_shown("a\nc", "a\nb\nc")

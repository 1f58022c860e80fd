"""Terminals in which a test types a page's commands, as its reader does, and looks at what comes."""

import asyncio
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import psutil

from tests.waiting import eventually

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$|^## ([^\n]*)$", re.MULTILINE | re.DOTALL)
_TIMEOUT = 90.0  # seconds that a command may take on a busy machine
_ENDLESS = ("tandem run", "tandem dashboard", "uvicorn")
"""Commands that run until Ctrl-C: whoever goes on opens another terminal."""


@dataclass(frozen=True)
class Block:
    """A block of code on a page."""

    heading: str
    language: str
    text: str

    @property
    def file(self) -> tuple[str, str]:
        """The file that a block shows, and what is in it."""
        first, _, text = self.text.partition("\n")
        assert first.startswith("# "), f"a block without a file name: {first}"
        return first.removeprefix("# "), text

    @property
    def commands(self) -> Iterator[tuple[str, str]]:
        """The commands of a console block, each with the output that the page shows. Other blocks have none."""
        if self.language != "console":
            return
        for part in re.split(r"^\$ ", self.text, flags=re.MULTILINE)[1:]:
            command, _, shown = part.partition("\n")
            yield command, shown.rstrip()


def blocks(page: str) -> Iterator[Block]:
    """The blocks of a page, in their order."""
    heading = ""
    for language, text, title in _BLOCK.findall(page):
        if title:
            heading = title
        else:
            yield Block(heading, language, text)


def is_endless(command: str) -> bool:
    """Whether a command runs until Ctrl-C."""
    return command.startswith(_ENDLESS)


def is_shown(shown: str, output: str) -> bool:
    """Whether an output has what a page shows. ``...`` stands for anything."""
    wanted = re.escape("\n".join(line.rstrip() for line in shown.splitlines())).replace(r"\.\.\.", ".*")
    return re.search(wanted, "\n".join(line.rstrip() for line in output.splitlines()), re.DOTALL) is not None


@dataclass
class Terminal:
    """A shell in a folder. It is a context manager: leaving it is Ctrl-C and closing the window."""

    folder: Path
    environment: Mapping[str, str]
    is_busy: bool = False
    """Whether it runs a command that does not end."""
    _count: int = field(default=0, init=False)

    def __enter__(self) -> Self:
        output, name = tempfile.mkstemp()
        self._output = Path(name)
        self._shell = subprocess.Popen(
            ["bash"],
            cwd=self.folder,
            env=dict(self.environment),
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
        os.close(output)
        return self

    def __exit__(self, *_: object) -> None:
        started = psutil.Process(self._shell.pid).children(recursive=True)
        for process in psutil.Process(self._shell.pid).children():
            process.send_signal(signal.SIGINT)
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        try:
            self._shell.wait(timeout=30)
        finally:
            for process in started:
                if process.is_running():
                    process.kill()
            self._shell.kill()
            self._shell.wait()
            self._output.unlink()

    async def type(self, command: str, shown: str) -> None:
        """Run a command, and see the output that the page shows. A request that only reads may be too early: again."""
        before = len(self.output)
        if is_endless(command):
            self.is_busy = True
            self._send(command)
            await self._sees(shown, before)
            return
        status = await self._run(command)
        deadline = asyncio.get_running_loop().time() + _TIMEOUT
        while not is_shown(shown, self.output[before:]):
            reads = command.startswith(("curl -s http", "tandem jobs list"))
            assert reads, self._missing(command, shown, before)
            assert asyncio.get_running_loop().time() < deadline, self._missing(command, shown, before)
            before = len(self.output)
            status = await self._run(command)
        assert status == 0, self._missing(command, "exit code 0", before)

    @property
    def output(self) -> str:
        """All that the shell and its commands have printed."""
        return re.sub(r"^ended [0-9]+ [0-9]+\n", "", self._raw, flags=re.MULTILINE)

    @property
    def _raw(self) -> str:
        return self._output.read_text(errors="replace")

    async def _run(self, command: str) -> int:
        """Run a command to its end; its exit code."""
        self._count += 1
        self._send(f"{command} </dev/null\necho; echo ended {self._count} $?")
        mark = re.compile(rf"^ended {self._count} ([0-9]+)$", re.MULTILINE)
        found = await eventually(lambda: mark.search(self._raw), timeout=_TIMEOUT)
        return int(found[1])

    async def _sees(self, shown: str, before: int) -> None:
        try:
            await eventually(lambda: is_shown(shown, self.output[before:]), timeout=_TIMEOUT)
        except AssertionError:
            raise AssertionError(self._missing("", shown, before)) from None

    def _send(self, text: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(f"{text}\n")
        self._shell.stdin.flush()

    def _missing(self, command: str, shown: str, before: int) -> str:
        return f"$ {command}\nthe page shows:\n{shown}\nand this came:\n{self.output[before:]}"

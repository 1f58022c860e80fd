"""Run the blocks of a page as a reader would, in an empty folder: ``python -m tests.docs.page_runner PAGE``.

DATABASE_URL and REDIS_URL name empty servers. The blocks are run in their order, and the first one that fails ends it.

1. A Python block whose first line is ``# some/file.py`` is that file. A later block of the same name replaces it.
2. Another Python block is run here, after those before it and in one namespace. ``await`` needs no function.
3. An SQL block is run on the database.
4. The lines of a console block that begin with ``$ `` are commands. The lines after a command are its output, in which
   ``...`` is any text. A command with output may fail, as some show an error. A server goes on until the page ends.
5. Other blocks are not run. A comment ``<!-- docs: skip: REASON -->`` right above a block keeps it from being run.
"""

import ast
import asyncio
import inspect
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

from worker.embedded.port import free_port

_BLOCK = re.compile(
    r"(?:<!-- docs: skip: (?P<skip>[^\n]+?) -->\n)?^```(?P<kind>\w*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)
_FILE = re.compile(r"# ([\w/.-]+\.(?:py|toml|ini))\n")
_SERVER = re.compile(r"^(?:env \S+ )?(?:\w+=\S+ )*(?:arq|uvicorn|litestar|flask|tandem run|tandem dashboard)\b")
_READY = re.compile(r"running on|starting worker|works on|dashboard on|listening", re.IGNORECASE)
_PORT = "8000"  # of the web applications in the pages
_START, _COMMAND = 40.0, 90.0  # seconds


class Block(NamedTuple):
    """A block of code of a page."""

    kind: str
    code: str
    line: int
    skip: str | None
    """The reason why it is not run."""


class WrongPageError(Exception):
    """A block of the page does not do what the page says."""


def blocks(text: str) -> list[Block]:
    """The blocks of a page."""
    return [
        Block(found["kind"], found["code"], text.count("\n", 0, found.start("kind")) + 1, found["skip"])
        for found in _BLOCK.finditer(text)
    ]


class PageRunner:
    """Runs the blocks of one page.

    Args:
        folder: an empty folder, which is the working directory.
    """

    def __init__(self, folder: Path, open_servers: ExitStack) -> None:
        self._folder = folder
        self._open = open_servers
        self._port = str(free_port())
        self._names: dict[str, Any] = {"__name__": "__page__"}
        programs = str(Path(sys.executable).parent)
        self._environment = {
            **os.environ,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "UVICORN_PORT": self._port,
            "COLUMNS": "160",
            "PYTHONPATH": str(folder),
        }

    async def run(self, block: Block) -> None:
        """Run a block. Raises what the code raises, or `WrongPageError`."""
        match block.kind:
            case "python" | "toml" | "ini" if found := _FILE.match(block.code):
                self._write(found[1], block.code)
            case "python":
                await self._run_python(block)
            case "sql":
                with psycopg.connect(os.environ["DATABASE_URL"].replace("+asyncpg", "")) as connection:
                    connection.execute(block.code.encode())
            case "console":
                for command, expected in _commands(block.code):
                    self._run_command(command, expected)

    def _write(self, name: str, code: str) -> None:
        file = self._folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
        if file.parent.name == "tasks":  # this project's own package has the same name
            (file.parent / "__init__.py").touch()

    async def _run_python(self, block: Block) -> None:
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(f"{chr(10) * (block.line - 1)}{block.code}", "page", "exec", flags=flags, dont_inherit=True)
        result = eval(code, self._names)
        if inspect.iscoroutine(result):
            await asyncio.wait_for(result, _COMMAND)

    def _run_command(self, command: str, expected: str) -> None:
        command = command.replace(f"localhost:{_PORT}", f"localhost:{self._port}")
        if _SERVER.match(command) and not re.search(r"--burst|--help|--check", command):
            self._open.enter_context(self._serving(command))
            return
        ran = subprocess.run(
            ["bash", "-c", command],
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_COMMAND,
            check=False,
        )
        output = ran.stdout + ran.stderr
        _say(f"$ {command}\n{output}")
        if expected and not _pattern(expected).search(output):
            raise WrongPageError(f"$ {command}\nshows\n{output}\nand not\n{expected}")
        if ran.returncode and not expected:
            raise WrongPageError(f"$ {command}\nended with {ran.returncode}:\n{output}")

    @contextmanager
    def _serving(self, command: str) -> Iterator[None]:
        """Run a server until the page ends."""
        if command.startswith(("litestar", "flask")):
            command = f"{command.replace(f' --port {_PORT}', '')} --port {self._port}"
        log = self._folder / f"server-{time.monotonic_ns()}.log"
        with log.open("wb") as output:
            server = subprocess.Popen(
                ["bash", "-c", f"exec {command}"],
                cwd=self._folder,
                env=self._environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            deadline = time.monotonic() + _START
            while not _READY.search(log.read_text()):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise WrongPageError(f"$ {command}\ndoes not run:\n{log.read_text()}")
                time.sleep(0.1)
            yield
        finally:
            server.terminate()
            server.wait()
            _say(f"$ {command}\n{log.read_text()}")


def _commands(code: str) -> Iterator[tuple[str, str]]:
    """The commands of a console block, each with the output that the page shows."""
    command, output = "", list[str]()
    for line in code.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, "\n".join(output)
            command, output = line[2:].split("  #")[0].rstrip(), []
        elif command.endswith("\\"):
            command = command[:-1] + line.strip()
        else:
            output.append(line.rstrip())
    if command:
        yield command, "\n".join(output)


def _pattern(expected: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in expected.split("...")), re.DOTALL)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


async def run_page(found: list[Block]) -> None:
    """Run the blocks of a page in the working directory."""
    with ExitStack() as servers:
        runner = PageRunner(Path.cwd(), servers)
        for block in found:
            if block.skip is None:
                _say(f"-- line {block.line}, {block.kind}")
                await runner.run(block)


if __name__ == "__main__":
    asyncio.run(run_page(blocks(Path(sys.argv[1]).read_text())))

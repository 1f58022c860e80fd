"""``BackgroundProcess``: runs a command for the length of a block, a worker or a web server."""

import asyncio
import os
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from worker.embedded.watchdog import Watchdog

T = TypeVar("T")

_PROJECT = Path(__file__).parent.parent
_STOP_TIMEOUT = 10.0  # seconds that the worker gets to finish its jobs


class ProcessDiedError(Exception):
    """The process ended by itself. The message has its exit code and the last lines of its log."""


WORKER = (sys.executable, "-m", "arq", "worker.Settings")


class BackgroundProcess:
    """Runs a command in the background, for the length of an ``async with`` block.

    1. Leaving the block ends the process by SIGTERM, so that a worker drains. A cancellation meanwhile kills it.
    2. If this process is killed, a watchdog stops the other one.
    3. `while_it_runs` ends the caller's work if the process has ended by itself.
    4. `kill_and_replace` simulates a power cut and a supervisor that starts the process again.

    Args:
        name: what the process is, for errors.
        settings: environment variables, in place of those of this process.
    """

    def __init__(self, name: str, command: Sequence[str], settings: Mapping[str, str]) -> None:
        self._name = name
        self._command = command
        self._settings = settings
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the block
        self._watchdog = Watchdog(signal.SIGTERM)
        self._process: Process | None = None
        self._is_running = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._running.pid

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def kill_and_replace(self) -> None:
        """Kill the process with ``kill -9``, and start a new one."""
        self._is_running.clear()
        self._running.kill()
        await self._running.wait()
        await self._start()

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=_PROJECT,  # the folder of `tasks`
            env={**os.environ, **self._settings},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # a Ctrl-C in the terminal reaches this process only, which stops the other one
        )
        self._watchdog.end(self._process.pid)
        self._is_running.set()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._stop(self._running)
        finally:
            self._watchdog.dismiss()
            self._log.close()

    async def while_it_runs(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`, as long as the process runs; the result of `work`.

        Raises:
            ProcessDiedError: the process ended by itself before `work` did.
        """
        working = asyncio.create_task(work)
        dying = asyncio.create_task(self._death())
        try:
            await asyncio.wait({working, dying}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise ProcessDiedError(
                f"The {self._name} ended with exit code {dying.result()}. The end of its log: {self._end_of_log()}"
            )
        finally:
            working.cancel()
            dying.cancel()
            await asyncio.gather(working, dying, return_exceptions=True)

    async def _death(self) -> int:
        """Wait until the process ends without `kill_and_replace`; its exit code."""
        while True:
            process = self._running
            exit_code = await process.wait()
            if self._is_running.is_set() and process is self._running:
                return exit_code
            await self._is_running.wait()

    @property
    def _running(self) -> Process:
        assert self._process is not None, "use BackgroundProcess in an `async with` block"  # noqa: S101 - a caller's mistake
        return self._process

    async def _stop(self, process: Process) -> None:
        if process.returncode is not None:
            return
        process.terminate()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT):
                await process.wait()
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def _end_of_log(self, lines: int = 5) -> str:
        self._log.seek(0)
        log = self._log.read().decode(errors="replace").strip().splitlines()
        return " | ".join(log[-lines:]) or "(empty)"

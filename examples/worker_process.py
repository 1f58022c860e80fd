"""``WorkerProcess``: a real ``arq worker.Settings`` that lives as long as a block."""

import asyncio
import os
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from worker.embedded.watchdog import Watchdog

T = TypeVar("T")

_PROJECT = Path(__file__).parent.parent
_STOP_TIMEOUT = 10.0  # seconds that it gets to finish its jobs


class WorkerDiedError(Exception):
    """The worker ended by itself; the message ends with its last words."""


class WorkerProcess:
    """Runs ``arq worker.Settings`` in the background, for the length of an ``async with`` block.

    1. Leaving the block stops it in order: jobs that run may finish. Being cancelled meanwhile kills it.
    2. If this process is killed, a watchdog stops it.
    3. `while_it_runs` ends work that would wait in vain for a worker that has died by itself.
    4. `kill_and_replace` is what a power cut does to it, and what a supervisor does then.

    Args:
        settings: environment variables, over those of this process.
    """

    def __init__(self, settings: Mapping[str, str]) -> None:
        self._settings = settings
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the block
        self._watchdog = Watchdog(signal.SIGTERM)
        self._process: Process | None = None
        self._is_whole = asyncio.Event()

    @property
    def pid(self) -> int:
        return self._running.pid

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def kill_and_replace(self) -> None:
        """Kill it with ``kill -9``, in the middle of whatever it does, and start another one."""
        self._is_whole.clear()
        self._running.kill()
        await self._running.wait()
        await self._start()

    async def _start(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "arq", "worker.Settings"),
            cwd=_PROJECT,  # where `tasks` is
            env={**os.environ, **self._settings},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # a Ctrl-C in the terminal is for us, and we stop it
        )
        self._watchdog.end(self._process.pid)
        self._is_whole.set()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._stop(self._running)
        finally:
            self._watchdog.dismiss()
            self._log.close()

    async def while_it_runs(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`.

        Raises:
            WorkerDiedError: the worker ended by itself before `work` did.
        """
        working = asyncio.create_task(work)
        dying = asyncio.create_task(self._death())
        try:
            await asyncio.wait({working, dying}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            raise WorkerDiedError(
                f"The worker ended with exit code {dying.result()}. Its last words: {self._last_words()}"
            )
        finally:
            working.cancel()
            dying.cancel()
            await asyncio.gather(working, dying, return_exceptions=True)

    async def _death(self) -> int:
        """The exit code of a worker that nobody has killed."""
        while True:
            process = self._running
            exit_code = await process.wait()
            if self._is_whole.is_set() and process is self._running:
                return exit_code
            await self._is_whole.wait()

    @property
    def _running(self) -> Process:
        assert self._process is not None, "use it in an `async with` block"  # noqa: S101 - a mistake of the caller's code
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

    def _last_words(self, lines: int = 5) -> str:
        self._log.seek(0)
        log = self._log.read().decode(errors="replace").strip().splitlines()
        return " | ".join(log[-lines:]) or "none"

"""Worker processes that start at once, to be killed: real ones, forked from a process that has imported everything."""

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.waiting import eventually


def work_here(log: str, environment: Mapping[str, str]) -> None:
    """``python -m worker run``, without the part before."""
    from worker.config import Config
    from worker.process.alone import work

    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    os._exit(work(Config.load()))  # without what multiprocessing would do at the end


class Worker:
    """One worker process, for the length of a block."""

    def __init__(self, context: ForkServerContext, environment: Mapping[str, str]) -> None:
        self._log = Path(tempfile.mkstemp()[1])
        self._process: ForkServerProcess = context.Process(target=work_here, args=(str(self._log), dict(environment)))

    def __enter__(self) -> Self:
        self._process.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            print(self.output)  # noqa: T201 - pytest shows it with the failure
        self.kill()
        self._log.unlink()

    @property
    def output(self) -> str:
        return self._log.read_text()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """``kill -9``, and wait until it is gone."""
        self._process.kill()
        self._process.join()

    async def ends(self, timeout: float = 20) -> int:  # noqa: ASYNC109 - how long the test waits
        """Wait until it has ended; its exit code."""
        await eventually(lambda: not self._process.is_alive(), timeout=timeout)
        assert self._process.exitcode is not None
        return self._process.exitcode

    async def says(self, text: str, timeout: float = 20) -> None:  # noqa: ASYNC109 - likewise
        """Wait until it has printed `text`."""
        await eventually(lambda: text in self.output, timeout=timeout)


class Crew:
    """Starts them.

    Args:
        environment: of each, unless it is told otherwise.
        diary: the file in which their tasks write down what they do.
    """

    def __init__(self, context: ForkServerContext, environment: Mapping[str, str], diary: Path) -> None:
        self._context = context
        self._environment = environment
        self._diary = diary

    def worker(self, **environment: str) -> Worker:
        return Worker(self._context, {**self._environment, **environment})

    @property
    def diary(self) -> list[str]:
        """What their tasks have done so far, in order."""
        return self._diary.read_text().splitlines() if self._diary.exists() else []

    async def has_begun(self, job_id: str, times: int = 1, timeout: float = 20) -> None:  # noqa: ASYNC109 - likewise
        """Wait until a job has begun so often."""
        await eventually(lambda: self.diary.count(f"begin {job_id}") >= times, timeout=timeout)


@pytest.fixture(scope="session")
def fork_server() -> ForkServerContext:
    """A process that has imported everything; it must be there before the test's own processes are counted."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.lifecycle.perils", "worker.process.alone", "aiosqlite", "asyncpg"])
    first = context.Process(target=os.getpid)
    first.start()
    first.join()
    return context

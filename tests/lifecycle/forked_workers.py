"""Real worker processes that start fast: each is forked from a process that has imported everything."""

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


def run_worker(log: str, environment: Mapping[str, str]) -> None:
    """Run a worker as ``python -m worker run`` does, without the parsing of its command line."""
    from worker.config import Config
    from worker.process.standalone import work

    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    os._exit(work(Config.load()))  # without what multiprocessing would do at the end


class ForkedWorker:
    """One worker process, for the length of a block."""

    def __init__(self, context: ForkServerContext, environment: Mapping[str, str]) -> None:
        self._log = Path(tempfile.mkstemp()[1])
        self._process: ForkServerProcess = context.Process(target=run_worker, args=(str(self._log), dict(environment)))

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
        """Send the worker a signal."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the worker with SIGKILL and wait until it has ended."""
        self._process.kill()
        self._process.join()

    async def ends(self, timeout: float = 20) -> int:  # noqa: ASYNC109 - how long the test waits
        """Wait until the worker has ended; return its exit code."""
        await eventually(lambda: not self._process.is_alive(), timeout=timeout)
        assert self._process.exitcode is not None
        return self._process.exitcode

    async def says(self, text: str, timeout: float = 20) -> None:  # noqa: ASYNC109 - likewise
        """Wait until the worker has printed `text`."""
        await eventually(lambda: text in self.output, timeout=timeout)


class ForkedWorkers:
    """Makes forked workers.

    Args:
        environment: the environment of each, unless `new` overrides it.
        task_log: the file to which their tasks log what they do.
    """

    def __init__(self, context: ForkServerContext, environment: Mapping[str, str], task_log: Path) -> None:
        self._context = context
        self._environment = environment
        self._task_log = task_log

    def new(self, **environment: str) -> ForkedWorker:
        return ForkedWorker(self._context, {**self._environment, **environment})

    @property
    def task_log(self) -> list[str]:
        """What the tasks have logged so far, in order."""
        return self._task_log.read_text().splitlines() if self._task_log.exists() else []

    async def wait_for_start(self, job_id: str, times: int = 1, timeout: float = 20) -> None:  # noqa: ASYNC109 - likewise
        """Wait until a job has started this many times."""
        await eventually(lambda: self.task_log.count(f"begin {job_id}") >= times, timeout=timeout)


@pytest.fixture(scope="session")
def fork_server() -> ForkServerContext:
    """A process that has imported everything. It must exist before the test's child processes are counted."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.lifecycle.kill_tasks", "worker.process.standalone", "aiosqlite", "asyncpg"])
    first = context.Process(target=os.getpid)
    first.start()
    first.join()
    return context

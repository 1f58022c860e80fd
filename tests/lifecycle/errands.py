"""What the workers run that the tests of ``python -m worker run`` start: the tasks and their registry."""

import asyncio
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import db
from worker import cron, task

TASKS = tuple(
    f"tests.lifecycle.errands.{name}"
    for name in (
        *("double", "wait_for", "who_runs", "pass_on", "ask_arq", "leave", "cancel_all"),
        *("terminate_a_child", "terminate_a_pool", "terminate_forks", "once_in_a_leap_year"),
    )
)


@task
async def double(number: int) -> int:
    return 2 * number


@task
async def wait_for(file: str) -> str:
    """Say in `file`.begun that it begins, a line each time, and wait until there is `file`."""
    _note(Path(f"{file}.begun"))
    there = Path(file).exists
    while not there():  # noqa: ASYNC110 - whoever makes it is another process
        await asyncio.sleep(0.01)
    return "waited"


def _note(file: Path) -> None:
    with file.open("a") as begun:
        begun.write("begun\n")


@task
async def who_runs() -> str:
    """The event loop's module."""
    return type(asyncio.get_running_loop()).__module__


@task
async def pass_on(hops: int, queue: str, other: str) -> None:
    """Enqueue this into the other queue, `hops` times."""
    if hops:
        await pass_on.using(queue=other).enqueue(hops - 1, other, queue)


@task
async def ask_arq(ctx: dict[Any, Any], number: int) -> None:
    """Enqueue `double` as an arq task does."""
    await ctx["redis"].enqueue_job("double", number, _job_id="by-arq")


@task
async def leave(how: str) -> str:
    """End the process, as code that parses a command line does where it does not like one."""

    async def child() -> None:
        await asyncio.sleep(0.01)
        sys.exit(how)

    match how:
        case "in a child":
            await asyncio.gather(child(), asyncio.sleep(1))
        case "in a thread":
            await asyncio.to_thread(sys.exit, how)
        case "in a child that nobody waits for":
            await asyncio.wait({asyncio.create_task(child())})
        case "in a callback":
            asyncio.get_running_loop().call_soon(sys.exit, how)
            await asyncio.sleep(0.01)
        case "after the commit":
            db.on_commit(lambda: sys.exit(how))
    return "stayed"


@task
async def cancel_all() -> str:
    """Cancel whatever runs on this loop, as code does that takes itself for the whole program."""
    for each in asyncio.all_tasks() - {asyncio.current_task()}:
        each.cancel()
    await asyncio.sleep(0.1)
    return "alone"


@task
def terminate_a_child(method: str) -> int | None:
    """Start a process, send it SIGTERM, and say with which code it ended; None if it did not."""
    processes: Any = multiprocessing.get_context(method)  # of a class that its stub knows by a literal alone
    child = processes.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(20)
    code: int | None = child.exitcode
    child.kill()
    return code


@task
def terminate_forks(count: int) -> list[int]:
    """Send as many processes a SIGTERM as soon as they are forked, and say with which codes they ended."""
    codes = set()
    for _ in range(count):
        child = os.fork()
        if child == 0:
            time.sleep(1)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        codes.add(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    return sorted(codes)


@task
async def terminate_a_pool() -> str:
    """Let a process of a pool die of a SIGTERM of its own."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        try:
            await asyncio.get_running_loop().run_in_executor(pool, _end_by_sigterm)
        except BrokenProcessPool:
            return "broken"
    return "whole"


def _end_by_sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


@cron("0 0 29 2 *")
async def once_in_a_leap_year() -> None: ...

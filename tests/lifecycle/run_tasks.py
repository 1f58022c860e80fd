"""Tasks for the tests of ``python -m worker run``, with their registry."""

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
    f"tests.lifecycle.run_tasks.{name}"
    for name in (
        *(
            "double",
            "wait_for_file",
            "event_loop_module",
            "alternate_queues",
            "enqueue_through_arq",
            "exit_process",
            "cancel_all_tasks",
        ),
        *("terminate_child", "break_process_pool", "terminate_forked_children", "run_on_leap_day"),
    )
)


@task
async def double(number: int) -> int:
    return 2 * number


@task
async def wait_for_file(file: str) -> str:
    """Append a line to `file`.begun, then wait until `file` exists."""
    _append_begun(Path(f"{file}.begun"))
    there = Path(file).exists
    while not there():  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.01)
    return "waited"


def _append_begun(file: Path) -> None:
    with file.open("a") as begun:
        begun.write("begun\n")


@task
async def event_loop_module() -> str:
    """The event loop's module."""
    return type(asyncio.get_running_loop()).__module__


@task
async def alternate_queues(hops: int, queue: str, other: str) -> None:
    """Enqueue this task to the other queue, `hops` times in turn."""
    if hops:
        await alternate_queues.using(queue=other).enqueue(hops - 1, other, queue)


@task
async def enqueue_through_arq(ctx: dict[Any, Any], number: int) -> None:
    """Enqueue `double` through arq's client, as an arq task does."""
    await ctx["redis"].enqueue_job("double", number, _job_id="by-arq")


@task
async def exit_process(how: str) -> str:
    """Raise SystemExit outside the task's own body, in the given way."""

    async def child() -> None:
        await asyncio.sleep(0.01)
        sys.exit(how)

    match how:
        case "in a child":
            await asyncio.gather(child(), asyncio.sleep(1))
        case "in a thread":
            await asyncio.to_thread(sys.exit, how)
        case "in a child that is not awaited":
            await asyncio.wait({asyncio.create_task(child())})
        case "in a callback":
            asyncio.get_running_loop().call_soon(sys.exit, how)
            await asyncio.sleep(0.01)
        case "after the commit":
            db.on_commit(lambda: sys.exit(how))
    return "stayed"


@task
async def cancel_all_tasks() -> str:
    """Cancel all other asyncio tasks of the loop, as code does that assumes it is the whole program."""
    for each in asyncio.all_tasks() - {asyncio.current_task()}:
        each.cancel()
    await asyncio.sleep(0.1)
    return "alone"


@task
def terminate_child(method: str) -> int | None:
    """Start a process and send it SIGTERM; return its exit code, or None if it has not ended."""
    processes: Any = multiprocessing.get_context(method)  # of a class that its stub knows by a literal alone
    child = processes.Process(target=time.sleep, args=(60,))
    child.start()
    child.terminate()
    child.join(20)
    code: int | None = child.exitcode
    child.kill()
    return code


@task
def terminate_forked_children(count: int) -> list[int]:
    """Fork `count` processes and send each a SIGTERM at once; return their exit codes."""
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
async def break_process_pool() -> str:
    """Let a process of a pool end itself with SIGTERM."""
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
async def run_on_leap_day() -> None: ...

"""What the workers run that the tests of ``python -m worker run`` start: the tasks and their registry."""

import asyncio
import sys
from pathlib import Path
from typing import Any

import db
from worker import cron, task

TASKS = tuple(
    f"tests.lifecycle.errands.{name}"
    for name in ("double", "wait_for", "who_runs", "pass_on", "ask_arq", "leave", "once_in_a_leap_year")
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


@cron("0 0 29 2 *")
async def once_in_a_leap_year() -> None: ...

"""What the workers run that the tests of ``python -m worker run`` start: the tasks and their registry."""

import asyncio
from pathlib import Path
from typing import Any

from worker import cron, task

TASKS = tuple(
    f"tests.lifecycle.errands.{name}"
    for name in ("double", "wait_for", "who_runs", "pass_on", "ask_arq", "once_in_a_leap_year")
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


@cron("0 0 29 2 *")
async def once_in_a_leap_year() -> None: ...

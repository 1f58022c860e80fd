"""The tasks that Tandem is measured with."""

from bench import yardstick
from bench.yardstick import Row
from db import AsyncSession
from worker import task


@task
async def noop(number: int) -> None:  # noqa: ARG001 - it is validated and passed
    yardstick.begin()


@task
async def insert(session: AsyncSession, number: int) -> None:
    yardstick.begin()
    session.add(Row(number=number))


@task
async def wait(number: int) -> None:  # noqa: ARG001 - likewise
    await yardstick.wait()


@task(timeout=3600)
async def hold(number: int) -> None:  # noqa: ARG001 - likewise
    await yardstick.hold()


@task
async def ping(number: float) -> None:
    yardstick.answer(number)

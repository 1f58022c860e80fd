"""The tasks that Tandem is measured with."""
# ruff: noqa: ARG001 - a job gets its argument, whether it has a use for it or not

from bench import yardstick
from bench.yardstick import Row
from db import AsyncSession
from worker import task


@task
async def noop(number: int) -> None:
    yardstick.begin()


@task
async def insert(session: AsyncSession, number: int) -> None:
    yardstick.begin()
    session.add(Row(number=number))


@task(once=False)
async def insert_at_least_once(session: AsyncSession, number: int) -> None:
    yardstick.begin()
    session.add(Row(number=number))


@task
async def wait(number: int) -> None:
    await yardstick.wait()


@task(timeout=3600)
async def hold(number: int) -> None:
    await yardstick.hold()


@task
async def ping(number: float) -> None:
    yardstick.answer(number)

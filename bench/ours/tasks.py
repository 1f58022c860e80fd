"""The tasks that Tandem is measured with."""
# ruff: noqa: ARG001 - a job gets its argument, whether it has a use for it or not

from dataclasses import dataclass

from bench import contender_api
from bench.contender_api import Row
from db import AsyncSession
from worker import Chunk, task


@task
async def noop(number: int) -> None:
    contender_api.report_start()


@task
async def insert(session: AsyncSession, number: int) -> None:
    contender_api.report_start()
    session.add(Row(number=number))


@task(once=False)
async def insert_at_least_once(session: AsyncSession, number: int) -> None:
    contender_api.report_start()
    session.add(Row(number=number))


@dataclass
class Numbered:
    """One call of `insert_in_chunks`."""

    number: int


@task(chunk=Chunk(size=100))
async def insert_in_chunks(session: AsyncSession, calls: list[Numbered]) -> None:
    contender_api.report_start()
    session.add_all(Row(number=call.number) for call in calls)


@task
async def wait(number: int) -> None:
    await contender_api.run_waiting_job()


@task(timeout=3600)
async def hold(number: int) -> None:
    await contender_api.run_held_job()


@task
async def ping(number: float) -> None:
    contender_api.report_latency(number)

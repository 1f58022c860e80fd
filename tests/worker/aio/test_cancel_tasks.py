import asyncio

from worker.aio.cancel_tasks import cancel_tasks


async def test_a_task_that_suppresses_its_first_cancellation_is_cancelled_again() -> None:
    """A task that suppresses its first cancellation is cancelled again."""

    async def suppresses_one() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    task = asyncio.create_task(suppresses_one())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await cancel_tasks([task])
    assert task.cancelled()


async def test_errors_of_cancelled_tasks_are_not_raised() -> None:
    """An error of a task is not raised to the caller that cancels it."""

    async def fails() -> None:
        raise ValueError

    async with asyncio.timeout(5):
        await cancel_tasks([asyncio.create_task(fails())])
        await cancel_tasks([])

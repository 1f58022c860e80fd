import asyncio

from worker.ending import end


async def test_a_dropped_cancellation() -> None:
    """A task that lets its first cancellation go by is cancelled again."""

    async def deaf() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.Event().wait()

    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await end([task])
    assert task.cancelled()


async def test_errors_are_not_raised() -> None:
    """How the tasks end is nobody's business."""

    async def fails() -> None:
        raise ValueError

    async with asyncio.timeout(5):
        await end([asyncio.create_task(fails())])
        await end([])

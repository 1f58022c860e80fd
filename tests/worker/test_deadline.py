"""A deadline does what `asyncio.timeout` does."""

import asyncio

import pytest

from worker.deadline import Deadline


async def test_expires() -> None:
    """What takes too long is cancelled, once, and a TimeoutError says so; the task is not left cancelled."""
    with pytest.raises(TimeoutError) as raised, Deadline(0.01) as deadline:
        await asyncio.sleep(5)
    assert deadline.expired
    assert isinstance(raised.value.__cause__, asyncio.CancelledError)
    await asyncio.sleep(0)
    assert _asked() == 0


async def test_in_time() -> None:
    """What ends in time is left alone afterwards."""
    with Deadline(0.01) as deadline:
        pass
    await asyncio.sleep(0.05)
    assert not deadline.expired


async def test_error_of_the_block() -> None:
    """An error of the block's own passes through, also one that it makes of the cancellation."""
    with pytest.raises(ZeroDivisionError), Deadline(5):
        _ = 1 / 0
    with pytest.raises(LookupError), Deadline(0.01):
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            raise LookupError from None
    assert _asked() == 0


async def test_block_that_goes_on() -> None:
    """A block that takes no notice and ends well has ended well."""
    with Deadline(0.01) as deadline:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            value = "done"
    assert deadline.expired
    assert value == "done"
    assert _asked() == 0


async def test_cancelled_by_another() -> None:
    """A cancellation of somebody else's stays one, before the deadline and at it."""

    async def run(seconds: float) -> None:
        with Deadline(seconds):
            try:
                await asyncio.sleep(5)
            finally:
                began_to_end.set()
                await go_on.wait()

    for seconds in (5.0, 0.01):
        began_to_end, go_on = asyncio.Event(), asyncio.Event()
        task = asyncio.create_task(run(seconds))
        if seconds > 1:
            await asyncio.sleep(0)
        else:
            await began_to_end.wait()
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task


def _asked() -> int:
    """How many cancellations of this task stand."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()

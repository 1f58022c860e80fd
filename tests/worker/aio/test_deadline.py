"""`Deadline` behaves as `asyncio.timeout` does."""

import asyncio

import pytest

from worker.aio.deadline import Deadline


async def test_a_block_past_its_deadline_is_cancelled_once_and_raises_timeout_error() -> None:
    """A block that takes too long is cancelled once and raises TimeoutError; the task is not left cancelled."""
    with pytest.raises(TimeoutError) as raised, Deadline(0.01) as deadline:
        await asyncio.sleep(5)
    assert deadline.expired
    assert isinstance(raised.value.__cause__, asyncio.CancelledError)
    await asyncio.sleep(0)
    assert _pending_cancellations() == 0


async def test_a_block_that_ends_in_time_is_not_cancelled_later() -> None:
    """The deadline does not cancel the task after the block has ended."""
    with Deadline(0.01) as deadline:
        pass
    await asyncio.sleep(0.05)
    assert not deadline.expired


async def test_an_error_of_the_block_passes_through() -> None:
    """An error of the block passes through, also one that the block raises when it is cancelled."""
    with pytest.raises(ZeroDivisionError), Deadline(5):
        _ = 1 / 0
    with pytest.raises(LookupError), Deadline(0.01):
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            raise LookupError from None
    assert _pending_cancellations() == 0


async def test_a_block_that_suppresses_the_cancellation_ends_normally() -> None:
    """A block that suppresses the cancellation and ends normally raises no error."""
    with Deadline(0.01) as deadline:
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError:
            value = "done"
    assert deadline.expired
    assert value == "done"
    assert _pending_cancellations() == 0


async def test_a_cancellation_from_outside_stays_a_cancellation() -> None:
    """A cancellation from outside is not turned into TimeoutError, before the deadline and at it."""

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


def _pending_cancellations() -> int:
    """Return how many cancellations of this task are pending."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling()

"""Long computations on an event loop in slices."""

import asyncio
import time

from worker.aio.time_slices import TimeSlices


async def test_other_tasks_run_between_the_slices_of_a_long_computation() -> None:
    """A computation of 50 ms lets another task run several times; one of no time lets none run."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    slices, end = TimeSlices(), time.perf_counter() + 0.05
    await slices.rest()
    assert turns == 0
    while time.perf_counter() < end:
        await slices.rest()
    assert turns >= 3
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

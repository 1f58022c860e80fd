"""Work that a cancellation must not interrupt half way.

The work runs in a task of its own. The caller may be cancelled any number of times meanwhile: by asyncio once or twice,
by anyio at every turn of the loop. The work goes on to its end.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def shielded(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end and return its result, however often the caller is cancelled meanwhile.

    A cancellation that arrives meanwhile is delivered at the caller's next await. So a COMMIT that succeeded is
    reported as a success first. The cancellation is dropped if it was taken back by then, as `asyncio.timeout` does at
    the end of its block.
    """
    caller = asyncio.current_task()
    assert caller is not None  # noqa: S101 - coroutines run in tasks
    asked_before = caller.cancelling()
    task = caller.get_loop().create_task(work)
    cancellation = await _absorbing_cancellation(task)
    if cancellation is not None:
        # A cancellation that was pending at the call is counted already, but was not delivered either.
        asked_before = min(asked_before, caller.cancelling() - 1)
        asyncio.get_running_loop().call_soon(_deliver, caller, asked_before, cancellation)
    return task.result()


async def in_own_task(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in a task of its own, and pass only the first cancellation of the caller on to it.

    So `work` gets one `CancelledError` and can clean up. Its own result or error is the outcome.
    """
    task = asyncio.create_task(work)
    await _absorbing_cancellation(task, pass_on=task.cancel)
    return task.result()


async def _absorbing_cancellation(
    task: asyncio.Task[Any], pass_on: Callable[..., object] | None = None
) -> asyncio.CancelledError | None:
    """Wait for `task` without cancelling it, and return the last cancellation of the caller that arrived meanwhile.

    `asyncio.wait` would do, at five times the cost.

    Args:
        task: the task to wait for.
        pass_on: called with the arguments of the first cancellation.
    """
    last = None
    done = task.get_loop().create_future()

    def tell(_: asyncio.Task[Any]) -> None:
        if not done.done():
            done.set_result(None)

    task.add_done_callback(tell)
    while not task.done():
        try:
            await done
        except asyncio.CancelledError as cancellation:
            if last is None and pass_on is not None:
                pass_on(*cancellation.args)
            last = cancellation
            done = task.get_loop().create_future()
    return last


def _deliver(caller: asyncio.Task[Any], asked_before: int, cancellation: asyncio.CancelledError) -> None:
    if not caller.done() and caller.cancelling() > asked_before:
        # One request must stay one request, as `cancelling()` counts them. anyio knows its own by their message.
        caller.uncancel()
        caller.cancel(*cancellation.args)

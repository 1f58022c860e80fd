"""Work that a cancellation must not interrupt half way.

What is begun here runs in a task of its own, so the caller may be cancelled any number of times (asyncio once or twice,
anyio at every turn of the loop) while the work goes on to its end.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def shielded(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end and report how it ended, however often the caller is cancelled meanwhile.

    A cancellation that arrives meanwhile is delivered at the caller's next await, so that a COMMIT that succeeded is
    reported as a success first. It is dropped if whoever asked for it has taken it back by then: `asyncio.timeout`
    does so when its block ends.
    """
    caller = asyncio.current_task()
    assert caller is not None  # noqa: S101 - coroutines run in tasks
    asked_before = caller.cancelling()
    task = caller.get_loop().create_task(work)
    cancellation = await _absorbing_cancellation(task)
    if cancellation is not None:
        # One that was pending when we came is counted already, but was not delivered either.
        asked_before = min(asked_before, caller.cancelling() - 1)
        asyncio.get_running_loop().call_soon(_deliver, caller, asked_before, cancellation)
    return task.result()


async def in_own_task(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in a task of its own: the first cancellation of the caller is passed on to it, later ones are not.

    So `work` sees one `CancelledError`, cleans up in peace, and its own result or error is the truth.
    """
    task = asyncio.create_task(work)
    await _absorbing_cancellation(task, pass_on=task.cancel)
    return task.result()


async def _absorbing_cancellation(
    task: asyncio.Task[Any], pass_on: Callable[..., object] | None = None
) -> asyncio.CancelledError | None:
    """Wait for `task`, and leave it alone; give the last cancellation of the caller that arrived meanwhile.

    `asyncio.wait` would do, at five times the cost.

    Args:
        pass_on: gets what the first cancellation has to say.
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
        # One request stays one request, whoever counts them; anyio knows its own by their message.
        caller.uncancel()
        caller.cancel(*cancellation.args)

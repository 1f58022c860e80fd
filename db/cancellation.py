"""Work that a cancellation must not interrupt half way.

What is begun here runs in a task of its own, so the caller may be cancelled any number of times (asyncio once or twice,
anyio at every turn of the loop) while the work goes on to its end.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end and report how it ended, however often the caller is cancelled meanwhile.

    A cancellation that arrives meanwhile is delivered at the caller's next await, so that a COMMIT that succeeded is
    reported as a success first. It is dropped if whoever asked for it has taken it back by then: `asyncio.timeout`
    does so when its block ends.
    """
    caller = asyncio.current_task()
    assert caller is not None  # noqa: S101 - coroutines run in tasks
    asked_before = caller.cancelling()
    task = asyncio.get_running_loop().create_task(work)
    cancellation = await _absorbing_cancellation(task)
    if cancellation is not None:
        # One that was pending when we came is counted already, but was not delivered either.
        asked_before = min(asked_before, caller.cancelling() - 1)
        asyncio.get_running_loop().call_soon(_deliver, caller, asked_before, cancellation)
    return task.result()


async def in_private_task(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in a task of its own: the first cancellation of the caller is passed on to it, later ones are not.

    So `work` sees one `CancelledError`, cleans up in peace, and its own result or error is the truth.
    """
    task = asyncio.create_task(work)
    while not task.done():
        try:
            await _done(task)
        except asyncio.CancelledError as cancellation:
            task.cancel(*cancellation.args)
            await _absorbing_cancellation(task)
    return task.result()


async def _absorbing_cancellation(task: asyncio.Task[Any]) -> asyncio.CancelledError | None:
    """Wait for `task`; give the last cancellation of the caller that arrived meanwhile."""
    last = None
    while not task.done():
        try:
            await _done(task)
        except asyncio.CancelledError as cancellation:
            last = cancellation
    return last


async def _done(task: asyncio.Task[Any]) -> None:
    """Wait until `task` is done, and leave it alone: `asyncio.wait` for one task, at a fifth of its cost."""
    done = asyncio.get_running_loop().create_future()

    def tell(_: asyncio.Task[Any]) -> None:
        if not done.done():
            done.set_result(None)

    task.add_done_callback(tell)
    try:
        await done
    except asyncio.CancelledError:
        task.remove_done_callback(tell)
        raise


def _deliver(caller: asyncio.Task[Any], asked_before: int, cancellation: asyncio.CancelledError) -> None:
    if not caller.done() and caller.cancelling() > asked_before:
        # One request stays one request, whoever counts them; anyio knows its own by their message.
        caller.uncancel()
        caller.cancel(*cancellation.args)

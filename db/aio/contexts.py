"""Run a coroutine in a context of its own, without a task of its own."""

from collections.abc import Coroutine, Generator
from contextvars import Context
from types import coroutine
from typing import Any, TypeVar

R = TypeVar("R")


@coroutine
def run_in_context(awaited: Coroutine[Any, Any, R], context: Context) -> Generator[Any, Any, R]:
    """Await a coroutine whose context variables are those of `context`, in the task that awaits this one.

    A task of its own would end a cancellation of the caller that arrives during a COMMIT.
    """
    step, value = awaited.send, None
    while True:
        try:
            waiting_for = context.run(step, value)
        except StopIteration as end:
            result: R = end.value
            return result
        try:
            value = yield waiting_for
            step = awaited.send
        except GeneratorExit:
            context.run(awaited.close)
            raise
        except BaseException as error:  # noqa: BLE001 - a cancellation, which is the coroutine's to handle
            step, value = awaited.throw, error

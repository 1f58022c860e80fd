"""Threads that end synchronous sessions.

Not the threads of `asyncio.to_thread`: all of those may be busy with the very statements that are to be ended.
"""

import asyncio
import contextvars
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_MAX_THREADS = 32

_threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="db")


async def in_thread(fn: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run `fn` in one of these threads, in the caller's context."""
    context = contextvars.copy_context()
    return await asyncio.get_running_loop().run_in_executor(_threads, lambda: context.run(fn, *args, **kwargs))


def _replace_threads() -> None:
    global _threads  # noqa: PLW0603 - a forked child has none of its parent's threads
    _threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="db")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_replace_threads)

"""``current_worker``: arq's worker whose ``on_startup`` runs. arq does not hand it to its hooks."""

import asyncio
from typing import Any

from arq.worker import Worker


def current_worker() -> Worker | None:
    """The worker whose `main` the current asyncio task runs (arq 0.28, ``worker.py``); None if it runs none."""
    task = asyncio.current_task()
    coroutine: Any = None if task is None else task.get_coro()
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        if frame.f_code is Worker.main.__code__:
            worker: Worker = frame.f_locals["self"]
            return worker
        coroutine = coroutine.cr_await
    return None

"""The life of a worker in its process, where only its parts can be timed; the rest is in `tests/lifecycle`."""

import asyncio
import os
import signal
from types import MappingProxyType
from typing import Any

import pytest

from db.cancellation import to_the_end
from db.database import given_default
from worker import task
from worker.config import Config
from worker.engine.engine import Engine
from worker.process.lifecycle import Lifecycle
from worker.process.runtime import Runtime
from worker.process.stop_signals import STOP_SIGNALS
from worker.registry import Registry


@task
async def plain() -> None: ...


class SignalledAtTheEnd(Runtime):
    """One that is told to stop while the last thing that it waits for cannot be interrupted, as a COMMIT is."""

    async def open(self, arq_context: dict[Any, Any]) -> Engine:
        engine = await super().open(arq_context)
        await to_the_end(self._be_told())
        return engine

    async def _be_told(self) -> None:
        heard = asyncio.Event()
        os.kill(os.getpid(), signal.SIGTERM)
        asyncio.get_running_loop().call_later(0.1, heard.set)
        await heard.wait()


async def test_a_signal_at_the_end_of_the_opening(database_url: str, redis_url: str) -> None:
    """It ends the opening, and what was opened is closed."""
    registry = Registry("tasks.registry", "tasks/registry.py", MappingProxyType({plain.name: plain}), None)
    config = Config.load(database_url=database_url, redis_url=redis_url, connect_wait=20)
    lifecycle = Lifecycle(SignalledAtTheEnd(config, registry))
    try:
        with pytest.raises(asyncio.CancelledError):
            await lifecycle.begin({})
        assert lifecycle.stopped_by is signal.SIGTERM
        assert given_default() is None
        await lifecycle.ended()
    finally:
        for number in STOP_SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)

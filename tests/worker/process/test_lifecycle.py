"""The lifecycle of a worker in its process, for cases that need exact timing; the rest is in `tests/lifecycle`."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import anyio
import pytest

from db.aio.cancellation import shielded
from db.database import given_default
from worker import task
from worker.config import Config
from worker.engine.engine import Engine
from worker.process.lifecycle import Lifecycle
from worker.process.runtime import Runtime
from worker.process.stop_signals import STOP_SIGNALS
from worker.registry import Lifespan, Registry


@task
async def plain() -> None: ...


@pytest.fixture
def config(database_url: str, redis_url: str) -> Config:
    return Config.load(database_url=database_url, redis_url=redis_url, connect_wait=20)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Restore the signal handlers after each test."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def registry(lifespan: Lifespan | None = None) -> Registry:
    return Registry("tasks.registry", "tasks/registry.py", MappingProxyType({plain.name: plain}), lifespan)


class SignalledAtTheEnd(Runtime):
    """A runtime that gets SIGTERM in its last wait, one that cannot be interrupted (as in a COMMIT)."""

    async def open(self, arq_context: dict[Any, Any]) -> Engine:
        engine = await super().open(arq_context)
        await shielded(self._receive_sigterm())
        return engine

    async def _receive_sigterm(self) -> None:
        heard = asyncio.Event()
        os.kill(os.getpid(), signal.SIGTERM)
        asyncio.get_running_loop().call_later(0.1, heard.set)
        await heard.wait()


async def test_a_signal_at_the_end_of_the_opening_ends_it_and_closes_what_was_opened(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal ends the opening, everything is closed again, and the process is set to end soon in any case."""
    codes: list[int] = []
    monkeypatch.setattr("worker.process.lifecycle.exit_after_delay", codes.append)
    lifecycle = Lifecycle(SignalledAtTheEnd(config, registry()))
    with pytest.raises(asyncio.CancelledError):
        await lifecycle.begin({})
    assert lifecycle.stopped_by is signal.SIGTERM
    assert codes == [0]
    assert given_default() is None
    await lifecycle.ended()


async def test_the_lifespan_and_the_hooks_run_in_one_asyncio_task(config: Config) -> None:
    """A lifespan may hold a task group open; lifespan and hooks may set context variables and reset them."""
    region: ContextVar[str] = ContextVar("region")
    seen: list[Any] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[dict[str, Any]]:
        token = region.set("eu")
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.sleep_forever)
            seen.append(asyncio.current_task())
            yield {}
            seen.append(asyncio.current_task())
            group.cancel_scope.cancel()
        region.reset(token)

    async def startup(ctx: dict[Any, Any]) -> None:
        seen.append(asyncio.current_task())
        ctx["token"] = region.set("us")

    async def shutdown(ctx: dict[Any, Any]) -> None:
        seen.append(asyncio.current_task())
        region.reset(ctx["token"])

    lifecycle = Lifecycle(Runtime(config, registry(lifespan), on_startup=startup, on_shutdown=shutdown))
    async with asyncio.timeout(30):
        await lifecycle.begin({})
        await lifecycle.close()
    assert len(seen) == 4
    assert len(set(seen)) == 1
    assert lifecycle.exit_code == 0


@pytest.mark.parametrize("make_group", [anyio.create_task_group, asyncio.TaskGroup])
async def test_a_lifespan_whose_task_fails_ends_the_worker_with_code_1(
    config: Config, make_group: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of the lifespan's task drains the worker and ends it with code 1 and that error."""
    fails = asyncio.Event()

    async def fail() -> None:
        await fails.wait()
        raise LookupError("lost")

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[dict[str, Any]]:
        async with make_group() as group:
            if isinstance(group, asyncio.TaskGroup):
                group.create_task(fail())
            else:
                group.start_soon(fail)
            yield {}

    lifecycle = Lifecycle(Runtime(config, registry(lifespan)))
    await lifecycle.begin({})
    fails.set()
    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.timeout(30):
            await lifecycle.ended()
    assert raised.group_contains(LookupError, match="lost")
    assert lifecycle.exit_code == 1
    assert "ending the process" in caplog.text
    assert given_default() is None

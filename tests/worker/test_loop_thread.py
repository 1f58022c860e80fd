"""Running coroutines on the event loop of another thread."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest

from worker import WorkerError, loop_thread

WHO: ContextVar[str] = ContextVar("who", default="nobody")


async def who() -> str:
    await asyncio.sleep(0)
    return WHO.get()


def test_the_callers_context_goes_along() -> None:
    """What runs on the loop sees what the caller sees."""
    WHO.set("me")
    assert loop_thread.run(who()) == "me"


def test_there_is_one_loop() -> None:
    """All threads share it."""

    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with ThreadPoolExecutor(8) as threads:
        assert len({id(each) for each in threads.map(lambda _: loop_thread.run(loop()), range(50))}) == 1
    assert loop_thread.own_loop() is loop_thread.run(loop())


def test_an_error_is_the_callers() -> None:
    """What the coroutine raises is raised."""

    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        loop_thread.run(fail())


def test_a_loop_that_is_closed() -> None:
    """It is said, and the coroutine is not left behind."""
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(WorkerError, match="is closed"):
        loop_thread.run_on(loop, who())


def test_a_loop_that_is_closed_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for ever for a loop that never ran."""
    monkeypatch.setattr(loop_thread, "_LOOK", 0.05)
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(loop_thread.run_on, loop, who())
        time.sleep(0.1)  # it waits by now, or will meet a closed loop
        loop.close()
        with pytest.raises(WorkerError, match="is closed"):
            asked.result(20)


async def test_a_loop_whose_thread_waits_for_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of waiting for each other for ever, the caller gets an error, and nothing is run later."""
    monkeypatch.setattr(loop_thread, "_LOOK", 0.05)
    monkeypatch.setattr(loop_thread, "_BEGINNING", 0.2)
    ran: list[str] = []

    async def run() -> None:
        ran.append("it")

    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(loop_thread.run_on, asyncio.get_running_loop(), run())
        with pytest.raises(WorkerError, match="does not answer"):
            asked.result(20)  # blocks this loop
    for _ in range(5):
        await asyncio.sleep(0)
    assert ran == []


async def test_a_loop_that_is_slow_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has begun is waited for."""
    monkeypatch.setattr(loop_thread, "_LOOK", 0.05)
    monkeypatch.setattr(loop_thread, "_BEGINNING", 0.1)

    async def slow() -> str:
        await asyncio.sleep(0.5)
        return "done"

    assert await asyncio.to_thread(loop_thread.run_on, asyncio.get_running_loop(), slow()) == "done"

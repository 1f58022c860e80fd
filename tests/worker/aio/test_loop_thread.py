"""Running coroutines on the event loop of another thread."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar

import pytest

from worker import WorkerError
from worker.aio import loop_thread

WHO: ContextVar[str] = ContextVar("who", default="nobody")


async def who() -> str:
    await asyncio.sleep(0)
    return WHO.get()


def test_a_coroutine_runs_in_the_callers_context() -> None:
    """A coroutine on the loop sees the caller's context variables."""
    WHO.set("me")
    assert loop_thread.run(who()) == "me"


def test_all_threads_share_one_loop() -> None:
    """Coroutines of all threads run on the same loop."""

    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    with ThreadPoolExecutor(8) as threads:
        assert len({id(each) for each in threads.map(lambda _: loop_thread.run(loop()), range(50))}) == 1
    assert loop_thread.own_loop() is loop_thread.run(loop())


def test_an_error_of_the_coroutine_is_raised_to_the_caller() -> None:
    """An exception of the coroutine is raised to the caller."""

    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        loop_thread.run(fail())


def test_running_on_a_closed_loop_is_an_error() -> None:
    """The error says that the loop is closed, and the coroutine is closed too."""
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(WorkerError, match="is closed"):
        loop_thread.run_on(loop, who())


def test_a_loop_that_is_closed_while_the_caller_waits_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller does not wait for ever for a loop that never runs."""
    monkeypatch.setattr(loop_thread, "_CHECK_INTERVAL", 0.05)
    loop = asyncio.new_event_loop()
    with ThreadPoolExecutor(1) as thread:
        asked = thread.submit(loop_thread.run_on, loop, who())
        time.sleep(0.1)  # by now it waits, or it will find the loop closed
        loop.close()
        with pytest.raises(WorkerError, match="is closed"):
            asked.result(20)


async def test_a_loop_that_waits_for_the_caller_is_an_error_and_not_a_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of waiting for each other for ever, the caller gets an error, and nothing is run later."""
    monkeypatch.setattr(loop_thread, "_CHECK_INTERVAL", 0.05)
    monkeypatch.setattr(loop_thread, "_START_TIMEOUT", 0.2)
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


async def test_a_coroutine_that_has_begun_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A coroutine that has begun is waited for, however long it takes."""
    monkeypatch.setattr(loop_thread, "_CHECK_INTERVAL", 0.05)
    monkeypatch.setattr(loop_thread, "_START_TIMEOUT", 0.1)

    async def slow() -> str:
        await asyncio.sleep(0.5)
        return "done"

    assert await asyncio.to_thread(loop_thread.run_on, asyncio.get_running_loop(), slow()) == "done"

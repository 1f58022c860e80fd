"""A worker's event loop ends with its main task, not with an exception of a job's code."""

import asyncio
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import uvloop

from worker.process.event_loop import new_event_loop

Main = Callable[[], Coroutine[Any, Any, Any]]


@pytest.fixture(params=[uvloop, asyncio])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Main], Any]:
    """Runs a main task on a new loop, with uvloop and without, within 10 seconds."""
    if request.param is asyncio:
        monkeypatch.setitem(sys.modules, "uvloop", None)

    async def limited(main: Main) -> Any:
        async with asyncio.timeout(10):
            return await main()

    def run_to_the_end(main: Main) -> Any:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            return runner.run(limited(main))

    return run_to_the_end


async def leave() -> None:
    await asyncio.sleep(0.001)
    sys.exit("left")


def interrupt() -> None:
    raise KeyboardInterrupt("from a callback")


def test_an_exit_in_an_awaited_child_or_thread_is_raised_to_its_parent(run: Callable[[Main], Any]) -> None:
    """The parent of a child task, or of a thread, gets the exception."""

    async def main() -> list[str]:
        beside = asyncio.create_task(asyncio.sleep(0.05, "beside"))
        with pytest.raises(SystemExit, match="left"):
            await asyncio.gather(leave(), asyncio.sleep(0.02))
        with pytest.raises(SystemExit, match="thread"):
            await asyncio.to_thread(sys.exit, "thread")
        return [await beside]

    assert run(main) == ["beside"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exit_that_no_code_awaits_is_logged_and_the_loop_goes_on(
    run: Callable[[Main], Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Exits of a detached task and of callbacks are logged; other ready callbacks run, once and in order."""
    ran: list[int] = []

    async def main() -> str:
        loop = asyncio.get_running_loop()
        left = asyncio.create_task(leave())
        for number in range(5):
            loop.call_soon(ran.append, number)
            loop.call_soon(interrupt)
        loop.call_later(0.001, interrupt)
        thread = threading.Thread(target=loop.call_soon_threadsafe, args=(interrupt,))
        thread.start()
        await asyncio.to_thread(thread.join)
        await asyncio.wait({left})
        await asyncio.sleep(0.01)
        return "done"

    assert run(main) == "done"
    assert ran == [0, 1, 2, 3, 4]
    assert "the worker goes on" in caplog.text
    assert "KeyboardInterrupt: from a callback" in caplog.text
    assert "SystemExit: left" in caplog.text


def test_an_exit_in_the_main_task_ends_the_loop(run: Callable[[Main], Any]) -> None:
    """An exception of the main task ends the loop."""

    async def main() -> None:
        await asyncio.create_task(asyncio.sleep(0))
        sys.exit("the end")

    with pytest.raises(SystemExit, match="the end"):
        run(main)


@pytest.mark.parametrize("before", [False, True])
def test_a_callback_that_raises_as_the_main_task_ends_does_not_change_its_result(
    run: Callable[[Main], Any], before: bool
) -> None:
    """A callback that raises in the same iteration in which the main task ends changes nothing about that end."""

    async def main() -> int:
        task = asyncio.current_task()
        assert task is not None
        if before:
            asyncio.get_running_loop().call_soon(interrupt)
        task.add_done_callback(lambda _: interrupt())
        return 1

    assert run(main) == 1

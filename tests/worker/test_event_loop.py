"""The loop that a worker runs on ends with its main task, and not with what a job's code raises."""

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
    """Runs a main task on a new loop, on uvloop's and where there is none, within 10 seconds."""
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


def test_a_child_that_is_awaited(run: Callable[[Main], Any]) -> None:
    """Its parent gets the exception, and so does who waits for a thread."""

    async def main() -> list[str]:
        beside = asyncio.create_task(asyncio.sleep(0.05, "beside"))
        with pytest.raises(SystemExit, match="left"):
            await asyncio.gather(leave(), asyncio.sleep(0.02))
        with pytest.raises(SystemExit, match="thread"):
            await asyncio.to_thread(sys.exit, "thread")
        return [await beside]

    assert run(main) == ["beside"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_what_nobody_awaits(run: Callable[[Main], Any], caplog: pytest.LogCaptureFixture) -> None:
    """A detached task and callbacks of all kinds are logged; what was ready beside them runs, once and in order."""
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


def test_the_main_task_ends_it(run: Callable[[Main], Any]) -> None:
    """What the main task raises ends the loop."""

    async def main() -> None:
        await asyncio.create_task(asyncio.sleep(0))
        sys.exit("the end")

    with pytest.raises(SystemExit, match="the end"):
        run(main)


@pytest.mark.parametrize("before", [False, True])
def test_in_the_turn_that_ends_it(run: Callable[[Main], Any], before: bool) -> None:
    """A callback that raises beside the end of the main task changes nothing about it, nor about what runs next."""

    async def main() -> int:
        task = asyncio.current_task()
        assert task is not None
        if before:
            asyncio.get_running_loop().call_soon(interrupt)
        task.add_done_callback(lambda _: interrupt())
        return 1

    assert run(main) == 1

"""Supervision: a loop that fails is started again; one that keeps failing ends the engine."""

import asyncio
from collections.abc import Callable

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from tests.waiting import eventually
from worker.engine import supervision
from worker.engine.supervision import EngineError, supervise


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervision, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(supervision, "_LONGEST_PAUSE", 0.002)


class Loop:
    """Fails some times, and then returns."""

    def __init__(self, error: Callable[[], BaseException], times: int) -> None:
        self._error = error
        self._times = times
        self.runs = 0
        self.trouble: list[str] = []

    async def run(self) -> None:
        self.runs += 1
        if self.runs <= self._times:
            raise self._error()

    async def supervised(self) -> None:
        await supervise("loop", self.run, trouble=self.trouble.append, is_ending=lambda: False)


@pytest.mark.parametrize("error", [RedisConnectionError, ResponseError, ConnectionRefusedError, OSError])
async def test_a_loop_waits_for_redis_without_end_and_logs_it_once(
    error: type[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    """Redis errors do not count as failures of the loop."""
    loop = Loop(lambda: error("away"), 50)
    await loop.supervised()
    assert loop.runs == 51
    assert loop.trouble == [f"loop: {error.__name__}: away"] * 50
    assert caplog.messages == [f"loop waits for Redis: {error.__name__}: away"]


async def test_a_loop_that_fails_nine_times_is_restarted_and_each_failure_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Each with its traceback."""
    loop = Loop(ZeroDivisionError, 9)
    await loop.supervised()
    assert loop.runs == 10
    assert [record.exc_info is not None for record in caplog.records] == [True] * 9


async def test_a_loop_that_fails_ten_times_ends_the_engine() -> None:
    """A loop that keeps failing ends the engine, with its reason."""
    with pytest.raises(EngineError, match="loop failed 10 times, last with ZeroDivisionError: why") as info:
        await Loop(lambda: ZeroDivisionError("why"), 100).supervised()
    assert isinstance(info.value.__cause__, ZeroDivisionError)


async def test_failures_long_apart_do_not_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures with a long time between them are forgotten."""
    monkeypatch.setattr(supervision, "_RECOVERED", 0.0)
    loop = Loop(ZeroDivisionError, 50)
    await loop.supervised()
    assert loop.runs == 51


async def test_a_loop_that_cancels_itself_is_restarted() -> None:
    """A cancellation that the engine did not ask for is a failure of the loop, not its end."""
    loop = Loop(asyncio.CancelledError, 3)
    await loop.supervised()
    assert loop.runs == 4


async def test_a_cancellation_ends_a_loop_only_once_the_engine_is_ending() -> None:
    """Before that it is a failure like any other."""
    runs, ending = 0, False

    async def run() -> None:
        nonlocal runs
        runs += 1
        await asyncio.Event().wait()

    task = asyncio.create_task(supervise("loop", run, trouble=lambda _: None, is_ending=lambda: ending))
    await eventually(lambda: runs, equals=1)
    task.cancel()
    await eventually(lambda: runs, equals=2)
    ending = True
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

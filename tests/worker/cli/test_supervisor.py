import asyncio
import time
from collections.abc import Iterable
from typing import cast

import pytest

from worker.cli import supervisor
from worker.cli.progress import Progress
from worker.cli.supervisor import Supervisor


class TestPauses:
    async def test_each_short_life_makes_the_next_start_later_up_to_half_a_minute(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The delays grow from half a second to half a minute."""
        assert await pauses_between([1] * 8, monkeypatch) == [0.5, 1, 2, 4, 8, 16, 30, 30]

    async def test_a_life_of_a_minute_resets_the_delay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A worker that lived for a minute is started again after the first delay."""
        assert (await pauses_between([1] * 5 + [60, 1], monkeypatch))[5:] == [0.5, 1]


async def pauses_between(lives: Iterable[float], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the seconds before each restart of a worker with these lives; none of them is really waited."""
    now, left, pauses = 0.0, [*lives], list[float]()
    supervised = Supervisor(["a"], cast("Progress", None), None, until_empty=False)

    async def run_once(_: str) -> int:
        nonlocal now
        now += left.pop(0)
        return 1

    async def wait(stopping: asyncio.Event, *, within: float) -> None:
        pauses.append(within)
        if not left:
            stopping.set()

    monkeypatch.setattr(supervised, "_run_once", run_once)
    monkeypatch.setattr(supervisor, "_first_of", wait)
    with monkeypatch.context() as stopped_clock:
        stopped_clock.setattr(time, "monotonic", lambda: now)
        await supervised._keep("a")
    return pauses


class TestFirstWorker:
    @pytest.mark.parametrize(("code", "others_start"), [(0, True), (1, False), (2, False)])
    def test_the_first_worker_of_a_burst_decides_whether_the_others_start(self, code: int, others_start: bool) -> None:
        """If the first worker had nothing to do, the others start; if it could not start, they do not try."""
        supervisor = Supervisor(["a", "b"], cast("Progress", None), None, until_empty=True)
        assert supervisor._is_final(code)
        assert (supervisor._first_works.is_set(), supervisor._stopping.is_set()) == (others_start, not others_start)

    @pytest.mark.parametrize("code", [0, 1, 137])
    def test_a_worker_that_is_to_run_for_ever_is_started_again_except_after_a_mistake(self, code: int) -> None:
        """Only exit code 2, a mistake in the settings, is final."""
        supervisor = Supervisor(["a", "b"], cast("Progress", None), None, until_empty=False)
        assert not supervisor._is_final(code)
        assert supervisor._is_final(2)

import asyncio
import time
from collections.abc import Iterable
from typing import cast

import pytest

from worker.cli import supervisor
from worker.cli.progress import Progress
from worker.cli.supervisor import Supervisor


class TestPauses:
    async def test_grow(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each short life makes the next start later, up to half a minute."""
        assert await pauses_between([1] * 8, monkeypatch) == [0.5, 1, 2, 4, 8, 16, 30, 30]

    async def test_are_forgotten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One that lived for a minute is started again as soon as at first."""
        assert (await pauses_between([1] * 5 + [60, 1], monkeypatch))[5:] == [0.5, 1]


async def pauses_between(lives: Iterable[float], monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that are waited after each life of a worker, before it is started again. None is really waited."""
    now, left, pauses = 0.0, [*lives], list[float]()
    supervised = Supervisor(["a"], cast("Progress", None), None, until_empty=False)

    async def live(_: str) -> int:
        nonlocal now
        now += left.pop(0)
        return 1

    async def wait(stopping: asyncio.Event, *, within: float) -> None:
        pauses.append(within)
        if not left:
            stopping.set()

    monkeypatch.setattr(supervised, "_live", live)
    monkeypatch.setattr(supervisor, "_first_of", wait)
    with monkeypatch.context() as stopped_clock:
        stopped_clock.setattr(time, "monotonic", lambda: now)
        await supervised._keep("a")
    return pauses


class TestTheFirst:
    @pytest.mark.parametrize(("code", "others_start"), [(0, True), (1, False), (2, False)])
    def test_ends_a_burst(self, code: int, others_start: bool) -> None:
        """Where it had nothing to do, the others look, too; where it could not start, they do not try."""
        supervisor = Supervisor(["a", "b"], cast("Progress", None), None, until_empty=True)
        assert supervisor._is_final(code)
        assert (supervisor._first_works.is_set(), supervisor._stopping.is_set()) == (others_start, not others_start)

    @pytest.mark.parametrize("code", [0, 1, 137])
    def test_is_started_again(self, code: int) -> None:
        """A worker that is to work for ever is, but for a mistake."""
        supervisor = Supervisor(["a", "b"], cast("Progress", None), None, until_empty=False)
        assert not supervisor._is_final(code)
        assert supervisor._is_final(2)

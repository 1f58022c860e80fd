"""The garbage collector of a worker process."""

import gc
from collections.abc import Iterator

import pytest

from worker.process.memory import settle


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    limits, enabled = gc.get_threshold(), gc.isenabled()
    yield
    gc.set_threshold(*limits)
    gc.unfreeze()
    if enabled:
        gc.enable()


def test_settles() -> None:
    """What is loaded is collected no more, and the rest less often; cycles still go."""
    settle()
    assert gc.get_freeze_count() > 0
    assert gc.get_threshold()[0] == 10_000


@pytest.mark.parametrize("limits", [(0, 10, 10), (50_000, 5, 5)])
def test_limits_of_the_projects_own(limits: tuple[int, int, int]) -> None:
    """Limits that are higher, or none, stay."""
    gc.set_threshold(*limits)
    settle()
    assert gc.get_threshold() == limits


def test_switched_off() -> None:
    """A collector that is switched off is left alone."""
    gc.disable()
    settle()
    assert gc.get_freeze_count() == 0

"""The garbage collector of a worker process."""

import gc
from collections.abc import Iterator

import pytest

from worker.process.gc_tuning import rare_collections, tune_gc


@pytest.fixture(autouse=True)
def _restore_collector() -> Iterator[None]:
    limits, enabled = gc.get_threshold(), gc.isenabled()
    yield
    gc.set_threshold(*limits)
    gc.unfreeze()
    if enabled:
        gc.enable()


def test_loaded_objects_are_frozen_and_collections_become_rarer() -> None:
    """Loaded objects are no longer examined, and collections are rarer; cycles are still collected."""
    tune_gc()
    assert gc.get_freeze_count() > 0
    assert gc.get_threshold()[0] == 10_000


@pytest.mark.parametrize("limits", [(0, 10, 10), (50_000, 5, 5)])
def test_thresholds_of_the_project_that_are_higher_or_zero_stay(limits: tuple[int, int, int]) -> None:
    """Thresholds that are higher, or zero (never), stay."""
    gc.set_threshold(*limits)
    tune_gc()
    assert gc.get_threshold() == limits


def test_a_collector_that_is_switched_off_is_left_alone() -> None:
    """A collector that is switched off is left alone."""
    gc.disable()
    tune_gc()
    assert gc.get_freeze_count() == 0


def test_imports_are_collected_rarely_and_are_frozen_at_their_end() -> None:
    """In the block collections are rare; after it the limits are as before, and what was loaded is not examined."""
    before = gc.get_threshold()
    with rare_collections():
        assert gc.get_threshold() == (1_000_000, *before[1:])
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() > 0


def test_limits_that_an_import_sets_stay() -> None:
    """A module of the project that sets limits while it is imported keeps them."""
    with rare_collections():
        gc.set_threshold(5_000, 20, 20)
    assert gc.get_threshold() == (5_000, 20, 20)


@pytest.mark.parametrize("limits", [(0, 10, 10), (2_000_000, 5, 5)])
def test_imports_leave_thresholds_that_are_higher_or_zero(limits: tuple[int, int, int]) -> None:
    """Thresholds that are higher, or zero (never), stay in the block, too."""
    gc.set_threshold(*limits)
    with rare_collections():
        assert gc.get_threshold() == limits
    assert gc.get_freeze_count() == 0

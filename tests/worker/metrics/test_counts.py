"""Rows of counts: their encoding, and what a histogram says about durations."""

import math
from bisect import bisect_left

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.metrics.counts import BOUNDS, LANES, NOTHING, RAN, WAITED, Counts, Histogram, add, decode, encode

ROWS = st.lists(st.integers(0, 2**32 - 1), min_size=LANES, max_size=LANES)


@given(ROWS)
def test_a_row_is_decoded_as_it_was_encoded(row: list[int]) -> None:
    """In as few bytes as its largest number needs."""
    raw = encode(row)
    assert decode(raw) == tuple(row)
    assert len(raw) == LANES * (1 if max(row) < 256 else 2 if max(row) < 65536 else 4)


def test_larger_numbers_are_cut_and_rows_of_other_versions_are_left_out() -> None:
    """Nothing overflows into another lane."""
    assert decode(encode([2**40] + [1] * (LANES - 1))) == (2**32 - 1, *[1] * (LANES - 1))
    assert decode(b"\0" * (LANES + 1)) is None


@given(st.lists(st.integers(0, 9_000_000), min_size=1, max_size=200), st.sampled_from([0.05, 0.5, 0.95, 1.0]))
def test_a_quantile_is_in_the_bucket_of_the_duration_that_it_stands_for(durations: list[int], part: float) -> None:
    """So it is wrong by a factor of 2.5 at most; past the last bound it is the last bound."""
    counts = [0] * (len(BOUNDS) + 1)
    for duration in durations:
        counts[bisect_left(BOUNDS, duration)] += 1
    estimate = Histogram(tuple(counts)).quantile(part)
    assert estimate is not None
    exact = sorted(durations)[math.ceil(len(durations) * part) - 1]
    place = bisect_left(BOUNDS, exact)
    lower = BOUNDS[place - 1] if place else 0
    upper = BOUNDS[min(place, len(BOUNDS) - 1)]
    assert min(lower, upper) <= estimate * 1000 <= upper * 1.000001


def test_nothing_has_no_quantile() -> None:
    """None, and not 0: no job has run."""
    assert NOTHING.ran.p50 is None
    assert NOTHING.finished == 0


@pytest.mark.parametrize("lane", [0, WAITED, RAN, LANES - 1])
def test_rows_are_added_lane_by_lane(lane: int) -> None:
    """Also none at all."""
    row = [0] * LANES
    row[lane] = 3
    assert add([row, row])[lane] == 6
    assert sum(add([row, row])) == 6
    assert add([]) == [0] * LANES
    assert Counts.of(row, row).row[lane] == 6

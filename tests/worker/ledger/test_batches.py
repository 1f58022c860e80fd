"""Batches of what is sent to a server."""

import pytest

from worker.ledger.batches import batches


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([1, 1, 1, 1], [[1, 1, 1], [1]]),
        ([4, 4, 4], [[4, 4], [4]]),
        ([1, 99, 1], [[1], [99], [1]]),
        ([99, 99], [[99], [99]]),
    ],
    ids=["nothing", "by number", "by bytes", "a large one is alone", "all are large"],
)
def test_batches_keep_order_and_stay_within_the_limits_of_number_and_bytes(
    sizes: list[int], expected: list[list[int]]
) -> None:
    """At most three items, and at most ten bytes unless one item has more; all of them, in order."""
    assert list(batches(sizes, lambda size: size, most=3, most_bytes=10)) == expected

"""Cutting what is sent or read into batches, by bytes too."""

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def batches(items: Iterable[T], size: Callable[[T], int], *, most: int, most_bytes: int) -> Iterator[list[T]]:
    """Yield the items in order, up to `most` at a time and up to `most_bytes`; a larger one is a batch of its own.

    Args:
        size: bytes of one item.
    """
    batch: list[T] = []
    total = 0
    for item in items:
        its_size = size(item)
        if batch and (len(batch) == most or total + its_size > most_bytes):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += its_size
    if batch:
        yield batch

"""What the database alone allows: the same rows, added by a loop without any queue, `CONCURRENCY` at a time."""

import asyncio
import sys
import time
from collections.abc import Iterator

import uvloop

from bench.yardstick import CONCURRENCY, Rows, tell


async def _measure(first: int, then: int) -> None:
    """Add the first rows, and time those that follow."""
    rows = Rows()
    await _add_all(rows, iter(range(first)))
    started = time.monotonic()
    await _add_all(rows, iter(range(first, first + then)))
    tell("took", time.monotonic() - started)


async def _add_all(rows: Rows, numbers: Iterator[int]) -> None:
    await asyncio.gather(*(_add(rows, numbers) for _ in range(CONCURRENCY)))


async def _add(rows: Rows, numbers: Iterator[int]) -> None:
    for number in numbers:
        await rows.add(number)


if __name__ == "__main__":
    uvloop.run(_measure(int(sys.argv[1]), int(sys.argv[2])))

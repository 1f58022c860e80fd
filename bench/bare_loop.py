"""What the database alone allows: the same rows, added by a loop without any queue, `CONCURRENCY` at a time.

With ``ledger`` each transaction ends with the statement that a job's does whose effects happen once.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from uuid import uuid4

import uvloop

from bench.yardstick import CONCURRENCY, Row, Rows, tell
from worker.ledger import Ending, State
from worker.ledger.statements import Statements
from worker.ledger.table import NAME


class LedgerRows(Rows):
    """Adds rows, and to each transaction the ledger's."""

    _settle = Statements.of("postgresql", NAME).settle

    async def add(self, number: int) -> None:
        ending = Ending(uuid4().hex, number, "insert", "arq:queue", State.DONE, result=b"null")
        async with self.sessions.begin() as session:
            session.add(Row(number=number))
            await session.flush()
            await session.execute(self._settle, ending._asdict())


async def _measure(rows: Rows, first: int, then: int) -> None:
    """Add the first rows, and time those that follow."""
    await _add_all(rows, iter(range(first)))
    started = time.monotonic()
    await _add_all(rows, iter(range(first, first + then)))
    tell("took", time.monotonic() - started)


async def _add_all(rows: Rows, numbers: Iterator[int]) -> None:
    await asyncio.gather(*(_add(rows, numbers) for _ in range(CONCURRENCY)))


async def _add(rows: Rows, numbers: Iterator[int]) -> None:
    for number in numbers:
        await rows.add(number)


async def _main(first: str, then: str, ledger: str = "") -> None:
    await _measure(LedgerRows() if ledger else Rows(), int(first), int(then))


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))

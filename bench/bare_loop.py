"""What the database alone allows: the same rows, added by a loop without any queue, `CONCURRENCY` at a time.

With ``ledger`` each transaction ends with the statement that a job's does whose effects happen once.
"""

import asyncio
import sys
from collections.abc import Iterator

import uvloop

from bench.contender_api import CONCURRENCY, Row, Rows
from worker.job_ids import new_job_id
from worker.ledger import FinalRow, State
from worker.ledger.statements import Statements
from worker.ledger.table import NAME


class LedgerRows(Rows):
    """Adds rows, and to each transaction the ledger's."""

    _complete = Statements.of("postgresql", NAME).complete

    async def add(self, number: int) -> None:
        ending = FinalRow(new_job_id(), number, "insert", "arq:queue", State.DONE, result=b"null")
        async with self.sessions.begin() as session:
            session.add(Row(number=number))
            await session.flush()
            await session.execute(self._complete, ending._asdict())


async def _add_all(rows: Rows, numbers: Iterator[int]) -> None:
    await asyncio.gather(*(_add(rows, numbers) for _ in range(CONCURRENCY)))


async def _add(rows: Rows, numbers: Iterator[int]) -> None:
    for number in numbers:
        await rows.add(number)


async def _main(count: str, ledger: str = "") -> None:
    await _add_all(LedgerRows() if ledger else Rows(), iter(range(int(count))))


if __name__ == "__main__":
    uvloop.run(_main(*sys.argv[1:]))

"""Counts of job rows, for metrics."""

from sqlalchemy import bindparam, func, literal, select

from db import default_database
from db.scope import scope
from worker.ledger.execute import execute
from worker.ledger.table import State, table


async def count_rows(name: str, state: State, most: int) -> int:
    """The number of rows of a state that is indexed: pending or failed. Counts no further than `most`.

    Args:
        name: the name of the ledger's table.
    """
    # Not a parameter: the indexes are partial by state, and the planner must see the value to use them.
    of_state = table(name).c.state == bindparam(None, state.value, literal_execute=True)
    rows = select(literal(1)).select_from(table(name)).where(of_state).limit(most).subquery()
    async with scope() as work:
        session = await work.session(default_database())
        return int((await execute(session, select(func.count()).select_from(rows))).scalar_one())

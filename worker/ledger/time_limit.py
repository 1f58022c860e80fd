"""A time limit for the statements that read what people look at: a page must not cost the database for long."""

from sqlalchemy import text

from worker.ledger.execute import AnySession, execute

STATEMENT_LIMIT = 2.0
"""Seconds that one statement may take."""


async def limit_time(session: AnySession, seconds: float = STATEMENT_LIMIT) -> None:
    """Limit the time of each statement until the end of the transaction, where the database can do that."""
    if session.get_bind().dialect.name == "postgresql":
        limit = text("SELECT set_config('statement_timeout', :limit, true)").bindparams(limit=f"{seconds * 1000:.0f}")
        await execute(session, limit)

"""``PostgresInfo``: what the ledger's PostgreSQL server says of itself, for ``tandem doctor``."""

import time
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

from db import Database
from db.sessions import independent
from worker.ledger.execute import execute

# `rolsuper` and the reserved connections: a superuser's connections come from the reserve last.
_SERVER = text("""
    SELECT current_setting('server_version') AS version,
        current_setting('server_version_num')::int AS number,
        pg_is_in_recovery() AS is_replica,
        current_setting('fsync') = 'on' AS is_durable,
        extract(epoch FROM clock_timestamp()) AS clock,
        current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int AS most,
        (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS connected
""")
_INVALID_INDEXES = text(
    "SELECT indexrelid::regclass::text FROM pg_index WHERE indrelid = to_regclass(:name) AND NOT indisvalid ORDER BY 1"
)


@dataclass(frozen=True, slots=True)
class PostgresInfo:
    """One server."""

    version: str
    number: int
    """The version as a number: 180001 is 18.1."""
    is_replica: bool
    is_durable: bool
    """False with ``fsync = off``: a machine that stops may lose what was committed."""
    most_connections: int
    """Connections that users other than superusers may open."""
    connected: int
    """Connections that are open now, as far as this user may see them."""
    clock_ahead: float
    """Seconds that its clock is ahead of this machine's, give or take half a round trip."""
    round_trip: float
    """Seconds."""


async def postgres_info(database: Database[Any]) -> PostgresInfo:
    """Ask the server of `database`."""
    async with independent(database) as session:
        await execute(session, text("SELECT 1"))  # opens the connection, which is not to be timed
        asked, started = time.time(), time.monotonic()
        row = (await execute(session, _SERVER)).one()
        round_trip = time.monotonic() - started
    return PostgresInfo(
        version=row.version,
        number=row.number,
        is_replica=row.is_replica,
        is_durable=row.is_durable,
        most_connections=row.most,
        connected=row.connected,
        clock_ahead=float(row.clock) - (asked + round_trip / 2),
        round_trip=round_trip,
    )


async def invalid_indexes(database: Database[Any], name: str) -> list[str]:
    """The indexes of the ledger's table that PostgreSQL does not use, as building them has failed."""
    async with independent(database) as session:
        return [str(row[0]) for row in await execute(session, _INVALID_INDEXES, {"name": name})]

"""What ``tandem doctor`` checks in PostgreSQL: version, role, durability, connections, clock and the ledger."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

from db import Database
from worker.cli.doctor.finding import Finding, Level
from worker.cli.doctor.redis_checks import check_clock
from worker.errors import LedgerError
from worker.ledger.schema_check import check
from worker.ledger.server_info import PostgresInfo, invalid_indexes

_OLDEST = 13  # INSERT ... ON CONFLICT and partial indexes are older; earlier versions get no fixes any more


def check_server(info: PostgresInfo, wanted: int) -> Iterator[Finding]:
    """The findings for the server.

    Args:
        wanted: connections that the pools of all workers may open together.
    """
    yield _version(info)
    if info.is_replica:
        yield Finding(
            Level.ERROR, "PostgreSQL role", "a replica: it takes no writes", "set DATABASE_URL to the primary"
        )
    if not info.is_durable:
        yield Finding(
            Level.WARNING,
            "PostgreSQL fsync",
            "off: a machine that stops may lose what was committed",
            "set fsync = on in postgresql.conf",
        )
    yield _connections(info, wanted)
    yield check_clock("PostgreSQL clock", info.clock_ahead, info.round_trip)


async def check_table(database: Database[Any], name: str) -> AsyncIterator[Finding]:
    """The findings for the ledger's table."""
    try:
        found = await check(database, name)
    except LedgerError as error:
        yield Finding(Level.ERROR, "ledger", str(error).partition(": run ")[0], "tandem migrate")
        return
    yield Finding(Level.OK, "ledger", f"{found} has all columns")
    if database.kind == "postgresql" and (broken := await invalid_indexes(database, found)):
        yield Finding(
            Level.ERROR,
            "ledger indexes",
            f"not valid: {', '.join(broken)}",
            "psql: " + " ".join(f"REINDEX INDEX CONCURRENTLY {index};" for index in broken),
        )


def _version(info: PostgresInfo) -> Finding:
    if info.number >= _OLDEST * 10_000:
        return Finding(Level.OK, "PostgreSQL version", info.version)
    return Finding(
        Level.ERROR, "PostgreSQL version", f"{info.version} is too old", f"install PostgreSQL {_OLDEST} or later"
    )


def _connections(info: PostgresInfo, wanted: int) -> Finding:
    text = f"the workers may open {wanted:,} of {info.most_connections:,}; {info.connected:,} are open now"
    if wanted < info.most_connections:
        return Finding(Level.OK, "PostgreSQL connections", text)
    return Finding(
        Level.WARNING,
        "PostgreSQL connections",
        text,
        "raise max_connections, lower WORKER_POOL_SIZE, or use PgBouncer with db.Database(url, pooler=True)",
    )

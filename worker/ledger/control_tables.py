"""The tables of what people set and do: the pauses of queues and schedules, and the audit rows."""

from sqlalchemy import BigInteger, Column, Index, Integer, MetaData, String, Table, Text

PAUSES, AUDIT = "pauses", "audit"
"""The names of the tables, after the name of the ledger's table and an underscore."""

# SQLite numbers rows only by a column of its own integer type.
_RowId = BigInteger().with_variant(Integer, "sqlite")


def add_control_tables(metadata: MetaData, bare: str) -> None:
    """Define both tables beside the ledger's table `bare`, in its metadata."""
    Table(
        f"{bare}_{PAUSES}",
        metadata,
        Column("kind", String(8), primary_key=True),
        Column("name", Text, primary_key=True),
        Column("since", BigInteger, nullable=False),
        Column("actor", Text, nullable=False),
        Column("until", BigInteger),
        Column("due_before", BigInteger),
    )
    Table(
        f"{bare}_{AUDIT}",
        metadata,
        Column("id", _RowId, primary_key=True),
        Column("at", BigInteger, nullable=False),
        Column("actor", Text, nullable=False),
        Column("action", Text, nullable=False),
        Column("subject", Text, nullable=False),
        Column("detail", Text, nullable=False),
        Column("outcome", Text),
        Index(f"{bare}_{AUDIT}_subject", "subject", "id"),
    )


def control_table(jobs: Table, kind: str) -> Table:
    """One of both tables, beside the ledger's table `jobs`."""
    return jobs.metadata.tables[f"{jobs.fullname}_{kind}"]

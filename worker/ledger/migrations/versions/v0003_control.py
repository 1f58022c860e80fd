"""the tables of pauses and of audit rows"""

from typing import Any

from alembic.operations import Operations
from sqlalchemy import BigInteger, Column, Integer, String, Text

revision = "0003"
down_revision = "0002"


def upgrade(op: Operations, table: str, schema: str | None) -> None:
    op.create_table(
        f"{table}_pauses",
        Column("kind", String(8), primary_key=True),
        Column("name", Text, primary_key=True),
        Column("since", BigInteger, nullable=False),
        Column("actor", Text, nullable=False),
        Column("until", BigInteger),
        Column("due_before", BigInteger),
        schema=schema,
    )
    row_id: Any = BigInteger().with_variant(Integer, "sqlite")
    op.create_table(
        f"{table}_audit",
        Column("id", row_id, primary_key=True),
        Column("at", BigInteger, nullable=False),
        Column("actor", Text, nullable=False),
        Column("action", Text, nullable=False),
        Column("subject", Text, nullable=False),
        Column("detail", Text, nullable=False),
        Column("outcome", Text),
        schema=schema,
    )
    op.create_index(f"{table}_audit_subject", f"{table}_audit", ["subject", "id"], schema=schema)

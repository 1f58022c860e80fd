"""The orders, and Tandem's tables."""

import sqlalchemy as sa
from alembic import op

from worker.ledger import alembic as tandem

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("email", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("parcel", sa.String()),
        sa.Column("placed_at", sa.DateTime(), nullable=False, server_default=sa.func.now()),
    )
    tandem.upgrade(op)


def downgrade() -> None:
    tandem.downgrade(op)
    op.drop_table("orders")

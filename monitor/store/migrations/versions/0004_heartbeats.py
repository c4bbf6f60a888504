"""Heartbeats: what was last pinged, one row per check that waits for pings."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "heartbeats",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("known_since", sa.BigInteger(), nullable=False),
        sa.Column("success_at", sa.BigInteger()),
        sa.Column("started_at", sa.BigInteger()),
        sa.Column("failed_at", sa.BigInteger()),
        sa.Column("exit_code", sa.Integer()),
        sa.Column("duration_s", sa.Float()),
        sa.Column("body", sa.Text(), nullable=False, server_default=""),
        sa.PrimaryKeyConstraint("name"),
    )

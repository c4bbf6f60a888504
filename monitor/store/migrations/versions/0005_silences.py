"""Silences, and what incidents know of muting, reminders and acknowledgements that end."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "silences",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("matchers", sa.JSON(), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("silences_ends", "silences", ["ends_at"])
    op.add_column("incidents", sa.Column("response", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("incidents", sa.Column("asked", sa.Integer(), nullable=False, server_default="1"))
    op.add_column("incidents", sa.Column("muted", sa.JSON(), nullable=False, server_default="[]"))
    for name in ("muted_at", "breached_at", "ack_expires_at", "remind_at", "wake_at"):
        op.add_column("incidents", sa.Column(name, sa.BigInteger()))
    op.execute("UPDATE incidents SET wake_at = next_escalation_at WHERE state = 'open'")
    op.create_index("incidents_wake", "incidents", ["wake_at"])

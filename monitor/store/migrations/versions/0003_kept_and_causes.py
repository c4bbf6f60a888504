"""What checks keep between runs, and which alerts can be the cause of others."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "kept",
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("shape", sa.String(length=16), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("instance"),
    )
    op.add_column("alerts", sa.Column("service", sa.Text(), nullable=False, server_default=""))
    op.add_column("alerts", sa.Column("home", sa.Text(), nullable=False, server_default=""))
    op.add_column("alerts", sa.Column("fells", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute(
        "UPDATE alerts SET home = group_key, service = substr(group_key, 1, length(group_key) - length(code) - 1) WHERE code IS NOT NULL"
    )
    op.execute("UPDATE alerts SET home = group_key WHERE code IS NULL")

"""When a firing alert was first seen well again; what checks saw, stretch by stretch, for replays."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("alerts", sa.Column("good_since", sa.BigInteger(), nullable=True))
    op.create_table(
        "stretches",
        sa.Column("instance", sa.Text(), nullable=False),
        sa.Column("first_at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.Column("runs", sa.Integer(), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("findings", sa.Text(), nullable=False),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("early", sa.Text(), nullable=False),
        sa.Column("shape", sa.String(length=16), nullable=False),
        sa.Column("starts", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("instance", "first_at"),
    )
    op.create_index("stretches_last", "stretches", ["last_at"])

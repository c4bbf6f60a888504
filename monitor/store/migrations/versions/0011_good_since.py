"""When a firing alert was first seen well again."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("alerts", sa.Column("good_since", sa.BigInteger(), nullable=True))

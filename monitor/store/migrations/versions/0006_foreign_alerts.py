"""Alerts that others send: their annotations, their source and their end."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("alerts", sa.Column("annotations", sa.JSON(), nullable=False, server_default="[]"))
    op.add_column("alerts", sa.Column("generator_url", sa.Text(), nullable=False, server_default=""))
    op.add_column("alerts", sa.Column("ends_at", sa.BigInteger()))
    op.add_column("alerts", sa.Column("ends_unsaid", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("alerts", sa.Column("updated_at", sa.BigInteger()))
    live = sa.text("state <> 'resolved'")
    op.create_index("alerts_live_end", "alerts", ["ends_at"], sqlite_where=live, postgresql_where=live)

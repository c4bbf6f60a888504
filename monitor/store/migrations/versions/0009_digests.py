"""Which digest a notification is told in, and indexes for looking at the outbox every second while thousands wait."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("outbox", sa.Column("digest", sa.Text()))
    op.drop_index("outbox_pending", "outbox")
    for name, columns, where in (
        ("outbox_due", ["next_attempt_at", "channel"], "state = 'pending'"),
        ("outbox_unfinished", ["channel"], "state IN ('pending', 'dead')"),
        ("outbox_leased", ["lease_until"], "lease_until IS NOT NULL"),
        ("outbox_digest", ["digest"], "digest IS NOT NULL"),
    ):
        op.create_index(name, "outbox", columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))

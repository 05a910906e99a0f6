"""How often keys were used, and strangers refused."""

import sqlalchemy as sa
from alembic import op

from app.auth.database.models import Instant

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    batch = sa.Column("batch", sa.BigInteger, nullable=False, server_default="0")
    op.add_column("api_key_servers", batch)
    op.create_table(
        "api_key_usage",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("starts_at", Instant, primary_key=True, index=True),
        sa.Column("hours", sa.SmallInteger, primary_key=True),
        sa.Column("served", sa.BigInteger, nullable=False),
        sa.Column("refused", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "api_key_refusals",
        sa.Column("network", sa.String(50), primary_key=True),
        sa.Column("reason", sa.String(50), primary_key=True),
        sa.Column("starts_at", Instant, primary_key=True, index=True),
        sa.Column("hours", sa.SmallInteger, primary_key=True),
        sa.Column("refused", sa.BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )

"""Limits and addresses of keys, from where they are used, and what is unusual."""

import sqlalchemy as sa
from alembic import op

from app.auth.database.models import Instant

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

# No key may be used from further addresses than those that it was made for.
RULE = "api_keys_stay_where_they_are"


def upgrade() -> None:
    for table, column in (("api_keys", "limits"), ("api_keys", "networks")):
        op.add_column(table, sa.Column(column, sa.Text, nullable=False, server_default=""))
    limited = sa.Column("limited", sa.BigInteger, nullable=False, server_default="0")
    op.add_column("api_key_usage", limited)
    op.create_table(
        "api_key_networks",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column("starts_at", Instant, primary_key=True, index=True),
        sa.Column("network", sa.String(50), primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "api_key_findings",
        sa.Column("key_id", sa.String(20), primary_key=True),
        sa.Column("problem", sa.String(200), primary_key=True),
        sa.Column("since", Instant, nullable=False),
        sqlite_with_rowid=False,
    )
    trigger = f"CREATE TRIGGER {RULE} BEFORE UPDATE ON api_keys"
    if op.get_context().dialect.name == "sqlite":
        op.execute(
            f"{trigger} WHEN NEW.networks <> OLD.networks BEGIN SELECT RAISE(ABORT, '{RULE}'); END"
        )
        return
    op.execute(
        f"CREATE FUNCTION {RULE}() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{RULE}'; END $$"
    )
    op.execute(
        f"{trigger} FOR EACH ROW WHEN (NEW.networks <> OLD.networks) EXECUTE FUNCTION {RULE}()"
    )

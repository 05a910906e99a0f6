"""The tables of the keys, and the rules that protect them."""

import sqlalchemy as sa
from alembic import op

from app.auth.database.models import Instant

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# What must never happen, whichever statement tries: the table, the kind of statement, and when.
RULES = {
    "api_keys_stay": ("api_keys", "DELETE", "true"),
    "api_key_secrets_stay": ("api_key_secrets", "DELETE", "true"),
    "api_key_events_stay": ("api_key_events", "DELETE", "true"),
    "api_key_events_are_final": ("api_key_events", "UPDATE", "true"),
    "api_key_revocations_are_final": (
        "api_keys",
        "UPDATE",
        "OLD.revoked_at IS NOT NULL AND NEW.revoked_at IS DISTINCT FROM OLD.revoked_at",
    ),
    "api_keys_never_widen": (
        "api_keys",
        "UPDATE",
        "NEW.id <> OLD.id OR NEW.scopes <> OLD.scopes"
        " OR NEW.expires_at IS DISTINCT FROM OLD.expires_at",
    ),
    "api_key_secrets_never_end_later": (
        "api_key_secrets",
        "UPDATE",
        "NEW.digest <> OLD.digest OR NEW.key_id <> OLD.key_id OR OLD.expires_at IS NOT NULL"
        " AND (NEW.expires_at IS NULL OR NEW.expires_at > OLD.expires_at)",
    ),
}


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(20), primary_key=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("scopes", sa.Text, nullable=False),
        sa.Column("created_by", sa.String(100), nullable=False),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("expires_at", Instant),
        sa.Column("revoked_at", Instant),
    )
    op.create_table(
        "api_key_secrets",
        sa.Column("digest", sa.LargeBinary(32), primary_key=True),
        sa.Column(
            "key_id", sa.String(20), sa.ForeignKey("api_keys.id"), nullable=False, index=True
        ),
        sa.Column("created_at", Instant, nullable=False),
        sa.Column("expires_at", Instant),
        sa.Column("last_used_at", Instant),
        sa.Column("version", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "api_key_events",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", Instant, nullable=False),
        sa.Column("action", sa.String(20), nullable=False),
        sa.Column("actor", sa.String(100), nullable=False),
        sa.Column(
            "key_id", sa.String(20), sa.ForeignKey("api_keys.id"), nullable=False, index=True
        ),
    )
    version = op.create_table(
        "api_key_version", sa.Column("version", sa.BigInteger, nullable=False)
    )
    op.bulk_insert(version, [{"version": 0}])
    forbid = _forbid_in_sqlite if op.get_context().dialect.name == "sqlite" else _forbid
    for name, (table, statement, condition) in RULES.items():
        forbid(name, table, statement, condition)


def _forbid_in_sqlite(name: str, table: str, statement: str, condition: str) -> None:
    condition = condition.replace("IS DISTINCT FROM", "IS NOT")
    op.execute(
        f"CREATE TRIGGER {name} BEFORE {statement} ON {table} WHEN {condition}"
        f" BEGIN SELECT RAISE(ABORT, '{name}'); END"
    )


def _forbid(name: str, table: str, statement: str, condition: str) -> None:
    op.execute(
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN RAISE EXCEPTION '{name}'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {name} BEFORE {statement} ON {table}"
        f" FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION {name}()"
    )
    if statement == "DELETE":
        op.execute(
            f"CREATE TRIGGER {name}_all BEFORE TRUNCATE ON {table} EXECUTE FUNCTION {name}()"
        )
